"""What Label Studio exports is a data set for `lite-detr data check` and `train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.cli import main
from tests.support.images import solid_png


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(2):
        (tmp_path / "images" / f"{number}.png").write_bytes(solid_png((number, 0, 0)))
    return tmp_path


def test_a_coco_export_is_accepted(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = {"bbox": [2.0, 2.0, 8.0, 8.0], "area": 64.0, "segmentation": [], "iscrowd": 0}
    document = {
        "images": [
            {"id": n, "file_name": f"images/{n}.png", "width": 64, "height": 48} for n in (0, 1)
        ],
        "categories": [{"id": 0, "name": "cup"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 0, "ignore": 0} | box for n in (0, 1)
        ],
        "info": {"contributor": "Label Studio"},
    }
    (images / "result.json").write_text(json.dumps(document))
    status = main(["data", "check", str(images / "result.json"), "--images", str(images)])
    printed = capsys.readouterr()
    assert status == 0, printed
    assert "cup" in printed.out


def test_a_yolo_export_is_accepted_with_a_data_yaml(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "classes.txt").write_text("cup\n")
    (images / "labels").mkdir()
    for number in range(2):
        (images / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (images / "data.yaml").write_text("train: images\nnames: [cup]\n")
    status = main(["data", "check", str(images)])
    printed = capsys.readouterr()
    assert status == 0, printed
    assert "cup" in printed.out
