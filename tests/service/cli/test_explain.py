"""`lite-detr explain` with the default model: figure, JSON and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.predictor import Predictor
from model.weights.info import ModelInfo
from service.cli import main
from service.engine import load
from tests.support.repository import ROOT

PHOTO = ROOT / "docs" / "samples" / "qr_close_up.jpg"


@pytest.fixture(scope="module")
def loaded() -> tuple[Predictor, ModelInfo]:
    from model.weights.info import DEFAULT_MODEL_PATH

    return load.load_predictor(DEFAULT_MODEL_PATH, "cpu")


@pytest.fixture(autouse=True)
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: tuple[Predictor, ModelInfo]
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "load_from_settings", lambda _settings: loaded)
    return tmp_path


def test_a_figure_is_drawn_for_the_best_detection(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(PHOTO)]) == 0
    assert "qr_close_up-explained.png: qr_code 0." in capsys.readouterr().out
    with Image.open(folder / "qr_close_up-explained.png") as figure:
        assert (figure.format, figure.size) == ("PNG", (1504, 1202))
    assert main(["explain", str(PHOTO)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_json_has_the_detection_that_detect_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(PHOTO), "--json", "--layer", "2"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["label"] == "qr_code"
    assert (document["decoder"]["layer"], document["decoder"]["num_layers"]) == (2, 3)
    assert len(document["decoder"]["points"]) == 64
    box = document["box"]
    # The query's token and most of its weight are in the box.
    x, y = document["encoder"]["reference"]
    assert box["xmin"] <= x <= box["xmax"] and box["ymin"] <= y <= box["ymax"]


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["--detection", "500"], 1, "there is no detection 500; there are "),
        (["--threshold", "1"], 1, "there are none with a score of at least 1 (--threshold)"),
        (["--detection", "0"], 2, "--detection: counted from 1"),
        (["--layer", "4"], 2, "--layer: the decoder has layers 1 to 3, not 4"),
        (["--layer", "0"], 2, "--layer: the decoder has layers 1 to 3, not 0"),
        (["--threshold", "nan"], 2, "--threshold: threshold must be within 0..1"),
        (["--output", "figure.jpg"], 2, "not the name of a .png file: name it figure.png"),
        (["--output", "no/such.png"], 2, "there is no folder"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str],
    status: int,
    problem: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["explain", str(PHOTO), *arguments]) == status
    assert problem in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_unreadable_images_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.jpg").write_text("no image")
    for name in ("text.jpg", "none.jpg"):
        assert main(["explain", name]) == 1
        assert f"{name}: " in capsys.readouterr().err
    assert main(["explain", ""]) == 1
    assert "IMAGE: the name of the image is empty" in capsys.readouterr().err


def test_an_unreadable_image_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "load_from_settings", lambda _settings: 1 / 0)
    assert main(["explain", "none.jpg"]) == 1


def test_the_image_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.png").write_bytes(PHOTO.read_bytes())
    assert main(["explain", "a.png", "--output", "a.png", "--overwrite"]) == 2
    assert "is an input of this command" in capsys.readouterr().err
