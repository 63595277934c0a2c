"""The default model detects the codes of the sample photos so that a reader can read them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.weights.info import DEFAULT_MODEL_PATH

zxingcpp = pytest.importorskip("zxingcpp", reason="zxing-cpp (the train extra) reads the codes")

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "docs" / "samples"
PAGE_SAMPLES = ROOT / "service" / "rest" / "static" / "samples"
NAMES = ("codes", "no_codes", "qr_close_up", "shelf")
MARGIN = 0.1  # of a box's side, added on each side before reading
TIMEOUT_S = 60

needs_default_model = pytest.mark.skipif(
    not DEFAULT_MODEL_PATH.exists(),
    reason=f"the default model is not trained yet: {DEFAULT_MODEL_PATH} is absent",
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A service with the default model, started as by `make serve`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LITE_DETR_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--grpc-port", "0"],
        cwd=ROOT,
        env=clean,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        output = ""
        for line in process.stderr:
            output += line
            if "Ready after" in line:
                break
        found = re.search(r"listens on (http://\S+)", output)
        assert found and "Ready after" in output, f"the service did not start: {output}"
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


def expected(name: str) -> list[tuple[str, str]]:
    document = json.loads((SAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    return sorted((code["label"], code["payload"]) for code in document["codes"])


def read_crop(image: Image.Image, box: dict[str, float]) -> list[str]:
    x = MARGIN * (box["xmax"] - box["xmin"])
    y = MARGIN * (box["ymax"] - box["ymin"])
    crop = image.crop(
        (
            round(box["xmin"] - x),
            round(box["ymin"] - y),
            round(box["xmax"] + x),
            round(box["ymax"] + y),
        )
    )
    return [found.text for found in zxingcpp.read_barcodes(np.asarray(crop))]


def detect(address: str, data: bytes) -> dict[str, Any]:
    response = httpx.post(
        f"{address}/detect",
        content=data,
        headers={"Content-Type": "image/jpeg"},
        timeout=TIMEOUT_S,
    )
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


@needs_default_model
@pytest.mark.parametrize("name", NAMES)
def test_the_boxes_of_a_sample_photo_contain_exactly_its_codes(address: str, name: str) -> None:
    data = (SAMPLES / f"{name}.jpg").read_bytes()
    result = detect(address, data)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert result["image"] == {"width": image.width, "height": image.height}
    seen = {
        (detection["label"], text)
        for detection in result["detections"]
        for text in read_crop(image, detection["box"]) or [f"unreadable: {detection}"]
    }
    assert sorted(seen) == expected(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_photo_is_small_and_is_also_on_the_page(name: str) -> None:
    data = (SAMPLES / f"{name}.jpg").read_bytes()
    assert len(data) <= 250_000
    assert data == (PAGE_SAMPLES / f"{name}.jpg").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_annotated_boxes_of_a_sample_photo_can_be_read(name: str) -> None:
    document = json.loads((SAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    image = Image.open(SAMPLES / f"{name}.jpg").convert("RGB")
    assert image.size == (document["width"], document["height"])
    for code in document["codes"]:
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), code["box"], strict=True))
        assert read_crop(image, box) == [code["payload"]]


def test_the_first_sample_photo_shows_every_class() -> None:
    labels = [label for label, _ in expected("codes")]
    assert labels == ["aztec", "data_matrix", "linear", "pdf417", "qr_code"]
