"""`lite-detr eval` scores the network that is served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.detections import Detections
from model.evaluation.evaluate import ImageDetections, coco_results
from model.geometry import padded_size
from model.images.decode import ImageLimits, decode_image
from model.labels import NO_CLASS
from service.cli import main
from service.engine.torch_device import TorchDevice
from tests.support.small_weights import SMALL

pytestmark = pytest.mark.usefixtures("threads_as_before")

SIZES = ((300, 400), (400, 300), (384, 512), (90, 300))  # (H, W); three shape buckets


def _write_set(folder: Path, labels: tuple[str, ...]) -> Path:
    """Images of noise and their annotations: every class of the model is a category."""
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES, 1):
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    document = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(1, len(SIZES) + 1)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 100, 100]}],
        "categories": [
            {"id": number, "name": label}
            for number, label in enumerate(labels, 1)
            if label != NO_CLASS
        ],
    }
    path = folder / "set.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "precision", ["fp32", pytest.param("bf16", marks=[pytest.mark.slow, pytest.mark.family])]
)
def test_detections_are_those_of_the_engine_to_the_bit(
    weights: Path, tmp_path: Path, precision: str
) -> None:
    device = TorchDevice(weights, "cpu", 0, precision)
    annotations, results = _write_set(tmp_path, device.model.labels), tmp_path / "results.json"
    flags = ["--model", str(weights), "--device", "cpu", "--precision", precision]
    flags += ["--annotations", str(annotations), "--images", str(tmp_path)]
    assert main(["eval", *flags, "--results", str(results), "--batch-size", "2", "--json"]) == 0
    expected = []
    for number in range(1, len(SIZES) + 1):
        data = (tmp_path / f"{number}.png").read_bytes()
        decoded = decode_image(data, SMALL, ImageLimits(10**9, 10**9))
        height, width = decoded.pixels.shape[:2]
        padded = padded_size(height, width, SMALL.bucket_stride)
        found = device.run([decoded.pixels], padded, [decoded.original_size]).detections[0]
        ids = Detections(found.scores, found.labels + 1, found.boxes_xyxy)
        expected.append(ImageDetections(number, ids, 0.0))
    assert json.loads(results.read_text()) == coco_results(expected)


def test_precision_of_a_gpu_is_refused_on_a_cpu(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(weights), "--device", "cpu", "--precision", "fp16"]
    assert main(["eval", *flags, "--annotations", "none.json", "--images", str(tmp_path)]) == 1
    error = "lite-detr: precision=fp16 needs a GPU; on a CPU choose fp32 or bf16\n"
    assert capsys.readouterr().err == error


def test_unknown_precision_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--precision", "fp8", "--annotations", "none.json", "--images", "."]
    assert main(["eval", *flags]) == 2
    assert "--precision=" in capsys.readouterr().err
