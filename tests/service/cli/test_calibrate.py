"""`lite-detr weights calibrate`, and what runs with the ranges that it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.cli import main
from service.engine.torch_device import TorchDevice
from tests.support.repository import ROOT

SAMPLES = ROOT / "docs" / "samples"
IMAGES = [str(SAMPLES / name) for name in ("codes.jpg", "no_codes.jpg")]


def test_a_calibrated_copy_detects_in_int8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "mine.safetensors")
    detect = ["detect", IMAGES[0], "--precision", "int8", "--json"]
    assert main(detect) == 1
    assert "lite-detr weights calibrate" in capsys.readouterr().err
    calibrate = ["weights", "calibrate", *IMAGES, *IMAGES, "--output", target]
    assert main([*calibrate, "--max-images", "3"]) == 0
    assert "mine.safetensors: lite-dino-codes, version" in capsys.readouterr().out
    assert main([*detect, "--model", target]) == 0
    [document] = json.loads(capsys.readouterr().out)
    assert len(document["detections"]) >= 3
    device = TorchDevice(target, "cpu", 1, "int8")
    assert device.implementations["precision"] == "int8"
    assert main(calibrate) == 2  # the file exists
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, problem",
    [("none.jpg", "none.jpg"), ("text.jpg", "text.jpg"), ("empty", "empty"), ("-", "stdin")],
)
def test_what_is_no_image_is_named(
    name: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    path = name if name == "-" else str(tmp_path / name)
    target = tmp_path / "mine.safetensors"
    assert main(["weights", "calibrate", IMAGES[0], path, "--output", str(target)]) in {1, 2}
    error = capsys.readouterr().err
    assert problem in error and "Traceback" not in error
    assert not target.exists()
