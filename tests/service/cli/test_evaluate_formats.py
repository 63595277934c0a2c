"""`lite-detr eval --data`: the formats that `lite-detr train` reads give the same scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.cli import main
from tests.support.small_weights import LABELS

pytestmark = pytest.mark.usefixtures("threads_as_before")

SIZE = (160, 120)  # width, height
BOXES = {"a": (0, (40, 30, 80, 60)), "b": (2, (16, 12, 64, 48))}  # class, left, top, width, height


def _images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(BOXES):
        noise = np.random.default_rng(number).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")


def _yolo(root: Path) -> Path:
    for split in ("train", "val"):
        _images(root / "images" / split)
        (root / "labels" / split).mkdir(parents=True)
        for name, (label, (left, top, width, height)) in BOXES.items():
            centre = (left + width / 2) / SIZE[0], (top + height / 2) / SIZE[1]
            numbers = (label, *centre, width / SIZE[0], height / SIZE[1])
            text = " ".join(map(str, numbers))
            (root / "labels" / split / f"{name}.txt").write_text(text)
    file = root / "data.yaml"
    file.write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(LABELS)}\n")
    return root


def _voc(root: Path) -> Path:
    _images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, (label, (left, top, width, height)) in BOXES.items():
        sides = {"xmin": left, "ymin": top, "xmax": left + width, "ymax": top + height}
        box = "".join(f"<{key}>{value}</{key}>" for key, value in sides.items())
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><object><name>{LABELS[label]}</name>"
            f"<bndbox>{box}</bndbox></object></annotation>"
        )
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("a\nb\n")
    return root


def _coco(root: Path) -> Path:
    _images(root / "val")
    document = {
        "images": [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate(BOXES, 1)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": label, "bbox": box}
            for n, (label, box) in enumerate(BOXES.values(), 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(LABELS)],
    }
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(document))
    return root


def _scores(output: str) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads(output)
    del scores["milliseconds_per_image"], scores["run"]
    scores["per_class"].sort(key=lambda row: row["name"])  # Pascal VOC has no order of classes
    return scores


def test_every_format_and_way_of_naming_it_gives_the_same_scores(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yolo, voc, coco = (write(tmp_path / write.__name__) for write in (_yolo, _voc, _coco))
    ways = {
        "annotations": ("--annotations", coco / "val.json", "--images", coco / "val"),
        "COCO": ("--data", coco),
        "COCO JSON": ("--data", coco / "val.json"),
        "YOLO": ("--data", yolo),
        "YAML": ("--data", yolo / "data.yaml", "--split", "train"),
        "VOC": ("--data", voc),
    }
    found = {}
    for name, flags in ways.items():
        command = ["eval", "--model", str(weights), "--device", "cpu", "--json"]
        assert main([*command, *map(str, flags)]) == 0, name
        found[name] = _scores(capsys.readouterr().out)
    expected = found["annotations"]
    assert expected["num_boxes"] == len(BOXES)
    assert {name: scores for name, scores in found.items() if scores != expected} == {}


def _renamed(root: Path) -> Path:
    yaml = root / "data.yaml"
    yaml.write_text(yaml.read_text().replace(LABELS[0], "zebra"))
    return root


def _without_val(root: Path) -> Path:
    yaml = root / "data.yaml"
    yaml.write_text(yaml.read_text().replace("val: images/val\n", ""))
    return root


def _with_a_bad_label(root: Path) -> Path:
    (root / "labels" / "val" / "a.txt").write_text("0 0.5 0.5 nan 0.5")
    return root


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_renamed, "the model has no class for the annotated categories ['zebra']"),
        (_without_val, "has no split named val: --split names another one, such as train"),
        (_with_a_bad_label, "label lines with NaN or infinite numbers"),
    ],
    ids=["other classes", "no such split", "bad label"],
)
def test_data_that_cannot_be_used_is_refused_as_in_training(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Path],
    problem: str,
) -> None:
    data = spoil(_yolo(tmp_path / "yolo"))
    command = ["eval", "--model", str(weights), "--device", "cpu", "--data", str(data)]
    assert main(command) == 2
    assert problem in capsys.readouterr().err


def test_a_stopped_run_on_yolo_resumes_only_with_the_same_annotations(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, results = _yolo(tmp_path / "yolo"), tmp_path / "found.json"
    image = data / "images" / "val" / "b.png"
    whole = image.read_bytes()
    command = ["eval", "--model", str(weights), "--device", "cpu", "--data", str(data)]
    command += ["--results", str(results)]
    image.write_bytes(whole[: len(whole) // 2])
    assert main(command) == 1  # one image could not be read
    image.write_bytes(whole)
    label = data / "labels" / "val" / "a.txt"
    before = label.read_text()
    label.write_text("0 0.5 0.5 0.5 0.25")
    assert main(command) == 2
    assert "another run, whose annotations is" in capsys.readouterr().err
    label.write_text(before)
    assert main(command) == 0
    assert "resuming: 1 of 2 images" in capsys.readouterr().err
    assert {row["image_id"] for row in json.loads(results.read_text())} == {1, 2}
