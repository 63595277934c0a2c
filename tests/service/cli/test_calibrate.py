"""`lite-detr weights calibrate`, and what runs with the ranges that it finds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from model.weights.header import read_header
from service.cli import main
from service.cli.calibrate import _evenly
from service.cli.inputs import ImageFile
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


@pytest.mark.parametrize("name", ["none.jpg", "text.jpg", "empty"])
def test_what_is_no_image_is_named_and_left_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    path = str(tmp_path / name)
    target = tmp_path / "mine.safetensors"
    assert main(["weights", "calibrate", path, IMAGES[0], "--output", str(target)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{path}: ") and printed.err.count("\n") == 1
    assert printed.out.startswith(f"{target}: ") and printed.out.endswith(", from 1 image\n")
    assert json.loads(read_header(target).metadata["int8"])["images"] == 1


def test_without_any_image_no_file_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine.safetensors"
    calibrate = ["weights", "calibrate", "--output", str(target)]
    assert main([*calibrate, str(tmp_path)]) == 1
    assert "no image files in this folder\nlite-detr: no image could be" in capsys.readouterr().err
    assert main([*calibrate, "-"]) == 2
    assert "stdin" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(
    "name, problem",
    [
        ("a.jpg", "is not the name of a .safetensors file"),
        ("photo", "is an input of this command"),
        ("other.JPG", "name it {}/other.safetensors"),
        ("pipe", "is not a regular file"),
    ],
)
def test_images_and_pipes_are_not_replaced_by_the_output(
    name: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(IMAGES[0], tmp_path / "a.jpg")
    shutil.copy(IMAGES[0], tmp_path / "photo")
    os.mkfifo(tmp_path / "pipe")
    images = [str(tmp_path / "a.jpg"), str(tmp_path / "photo")]
    target = tmp_path / name
    calibrate = ["weights", "calibrate", *images, "--output", str(target), "--overwrite"]
    assert main(calibrate) == 2
    assert problem.format(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "a.jpg").read_bytes() == Path(IMAGES[0]).read_bytes()


def test_an_interrupted_run_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile, "read", interrupted)
    target = tmp_path / "mine.safetensors"
    assert main(["weights", "calibrate", IMAGES[0], "--output", str(target)]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count, at_most, chosen", [(3, 5, [0, 1, 2]), (129, 128, None)])
def test_files_are_chosen_evenly(count: int, at_most: int, chosen: list[int] | None) -> None:
    files = [ImageFile(str(number)) for number in range(count)]
    numbers = [int(file.name) for file in _evenly(files, at_most)]
    assert len(numbers) == min(count, at_most)
    assert chosen is None or numbers == chosen
    assert numbers[0] == 0 and numbers == sorted(set(numbers))
