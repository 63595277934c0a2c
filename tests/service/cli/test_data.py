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


def _change(file: Path, **values: object) -> None:
    """Sets values of all annotations."""
    document = json.loads(file.read_text(encoding="utf-8"))
    for annotation in document["annotations"]:
        annotation.update(values)
    file.write_text(json.dumps(document), encoding="utf-8")


def _with_validation(folder: Path) -> Path:
    """A data set whose validation images are its training images."""
    file = _coco(folder) / "train.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    for image in document["images"]:
        image["file_name"] = f"../train/{image['file_name']}"
    (folder / "val").mkdir()
    (folder / "val.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    "values", [{"iscrowd": 1}, {"bbox": [4, 4, 0, 30]}], ids=["crowds", "no area"]
)
def test_data_that_training_refuses_for_its_boxes_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, values: dict[str, object]
) -> None:
    folder = _with_validation(tmp_path / "set")
    _change(folder / f"{split}.json", **values)
    for command in (["data", "check"], ["train", "--output", str(tmp_path / "run"), "--data"]):
        assert main([*command, str(folder)]) == 2
        assert f"{split}.json has no box to" in capsys.readouterr().err


def test_class_of_validation_only_fails_the_check_as_it_fails_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _with_validation(tmp_path / "set")
    file = folder / "val.json"
    file.write_text(file.read_text(encoding="utf-8").replace("dog", "wolf"), encoding="utf-8")
    for command in (["data", "check"], ["train", "--output", str(tmp_path / "run"), "--data"]):
        assert main([*command, str(folder)]) == 2
        assert "does not have: wolf" in capsys.readouterr().err


def test_missing_test_split_of_an_export_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _coco(tmp_path)
    (folder / "train.json").unlink()
    (folder / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    yaml = "train: train\ntest: ../test/images\nnames: [dog]\n"
    (folder / "data.yaml").write_text(yaml)
    assert main(["data", "check", str(folder)]) == 0
    assert "warning: " in capsys.readouterr().out
    (folder / "data.yaml").write_text(yaml.replace("test:", "val:"))
    assert main(["data", "check", str(folder)]) == 2


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


def test_data_check_names_images_that_are_in_two_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _with_validation(tmp_path)
    assert main(["data", "check", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "warning: images in two splits: 2 in train and val, the first: ../train/a.png" in out
    assert "content of another one" not in out
    assert main(["data", "check", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images_in_two_splits"] == {"train and val": 2}


def test_group_of_classes_is_left_out_of_the_check_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _coco(tmp_path) / "train.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    root = {"id": 0, "name": "dog", "supercategory": "none"}
    document["categories"] = [root, {"id": 1, "name": "dog", "supercategory": "dog"}]
    file.write_text(json.dumps(document), encoding="utf-8")
    assert main(["data", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 boxes, 1 classes" in out
    assert "categories that only group others" in out


def test_boxes_that_are_too_small_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _coco(tmp_path) / "train.json"
    _change(file, bbox=[4, 4, 0.5, 0.5])
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "those below 2 px are not trained on" in capsys.readouterr().out


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
