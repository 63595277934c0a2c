"""`lite-detr data check`, and what `lite-detr train` refuses before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.cli import main


def _coco(folder: Path, *, size: tuple[int, int] = (64, 48), second: str = "cat") -> Path:
    (folder / "train").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        pixels = rng.integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "train" / name)
    box = {"category_id": 1, "iscrowd": 0}
    document = {
        "images": [
            {"id": n, "file_name": f"{name}.png", "width": size[0], "height": size[1]}
            for n, name in enumerate("ab", 1)
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "bbox": [4, 4, 20, 30], **box},
            {"id": 2, "image_id": 1, "bbox": [4, 4, 20, 30], **box},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": second}],
    }
    (folder / "train.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_data_check_prints_counts_sizes_and_oddities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(_coco(tmp_path / "set", second="größe"))]) == 0
    out = capsys.readouterr().out
    assert "2 images (1 without a box), 2 boxes, 2 classes" in out
    assert "64 x 48 (2)" in out
    assert "categories without a box" in out
    assert "größe" in out
    assert "1 boxes nearly cover another one" in out


def test_data_check_without_a_box_to_train_on_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _coco(tmp_path) / "train.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    file.write_text(json.dumps(document), encoding="utf-8")
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "no box to train on" in capsys.readouterr().out


def test_data_check_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(_coco(tmp_path)), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"]["boxes"] == 2
    assert report["errors"] == []


def test_data_check_names_files_with_the_same_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _coco(tmp_path) / "train"
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "1 image files have the content of another one" in capsys.readouterr().out


def test_errors_have_status_2_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(_coco(tmp_path / "set", size=(48, 64)))]) == 2
    assert "another size" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_wrong_folder_of_images_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _coco(tmp_path / "set")
    given = ["--annotations", str(folder / "train.json"), "--images", str(tmp_path)]
    assert main(["train", *given, "--output", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "none of the 2 images" in err


def test_output_folder_given_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(tmp_path / "a"), "--output", str(tmp_path / "b")]) == 2
    assert "given twice" in capsys.readouterr().err


def test_absent_gpu_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = ["--data", str(_coco(tmp_path / "set")), "--device", "cuda"]
    assert main(["train", *given, "--output", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert "no CUDA GPU" in err
    assert err.count("\n") == 1
