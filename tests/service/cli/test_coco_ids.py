"""COCO output carries the ids of the user's own data set: `loadRes` scores it as `eval` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.labels import CODE_LABELS
from service.cli import main
from tests.support.fake_device import FakeDevice, FakeDeviceSpec
from tests.support.repository import ROOT

SAMPLES = ROOT / "docs" / "samples"
CATEGORY_IDS = (40, 7, 12, 3, 5)  # of CODE_LABELS
Detect = Callable[..., dict[str, Any]]


@pytest.fixture
def detect(capsys: pytest.CaptureFixture[str]) -> Detect:
    """Runs `detect --coco`; returns its document, with what it printed on stderr as `said`."""

    def run(*arguments: object) -> dict[str, Any]:
        assert main(["detect", *map(str, arguments), "--coco"]) == 0
        captured = capsys.readouterr()
        return {**json.loads(captured.out), "said": captured.err}

    return run


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "service.cli.offline_run.open_device", lambda _settings: FakeDevice(FakeDeviceSpec())
    )


def write_set(path: Path, images: dict[int, str], **more: Any) -> Path:
    """Writes a data set whose categories are the classes of the model, in another order."""
    named = zip(CATEGORY_IDS, CODE_LABELS, strict=True)
    document: dict[str, Any] = {
        "images": [{"id": key, "file_name": name} for key, name in images.items()],
        "annotations": [],
        "categories": [{"id": key, "name": name} for key, name in named],
    }
    path.write_text(json.dumps({**document, **more}))
    return path


def average_precision(annotations: Path, results: list[dict[str, Any]]) -> list[float]:
    """AP and AP50 as users compute them, with the interface of pycocotools."""
    coco = pytest.importorskip("faster_coco_eval")
    truth = coco.COCO(str(annotations))
    scorer = coco.COCOeval_faster(truth, truth.loadRes(results), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    return [float(value) for value in scorer.stats[:2]]


def test_loadres_on_the_users_own_json_scores_as_eval_does(
    tmp_path: Path, detect: Detect, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faster_coco_eval")
    images = {812: "shelf.jpg", 33: "codes.jpg", 4: "qr_close_up.jpg"}
    names = write_set(tmp_path / "names.json", images)
    flags = ("--device", "cpu", "--threshold", "0", "--annotations")
    found = detect(*(SAMPLES / name for name in images.values()), *flags, names)
    # The truth: the better half of the detections, some of them moved, so that AP is below 1.
    likely = [row for row in found["annotations"] if row["score"] > 0.3]
    annotations = [
        {
            "id": number,
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [row["bbox"][0] + number % 3 * 4, *row["bbox"][1:]],
            "area": row["area"],
            "iscrowd": 0,
        }
        for number, row in enumerate(likely, 1)
    ]
    truth = write_set(tmp_path / "truth.json", images, annotations=annotations)
    mine = detect(SAMPLES, *flags, truth)
    assert "does not list 1 of 4 files" in mine["said"]
    assert mine["info"]["image_ids"] == mine["info"]["category_ids"] == "annotations"
    data = ["--annotations", str(truth), "--images", str(SAMPLES)]
    assert main(["eval", "--device", "cpu", *data, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    by_load_res = average_precision(truth, mine["annotations"])
    assert 0.2 < scores["ap"] < 0.99
    assert by_load_res == pytest.approx([scores["ap"], scores["ap50"]], abs=2e-3)


@pytest.mark.usefixtures("fake_device")
def test_images_are_found_by_the_end_of_their_path(
    tmp_path: Path, detect: Detect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x/1.png", "y/1.png", "y/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "teal").save(tmp_path / name)
    names = {10: "x/1.png", 20: "./y/1.png", 30: "z\\2.png", 40: str(tmp_path / "y" / "2.png")}
    own = write_set(tmp_path / "set.json", names)
    monkeypatch.chdir(tmp_path / "y")
    found = detect("1.png", "2.png", "../x/../x/1.png", "--annotations", own)
    assert [image["id"] for image in found["images"]] == [20, 40, 10]
    assert "1 of 4 images" in found["said"]


@pytest.mark.usefixtures("fake_device")
@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({1: "1.png"}, "are both 1.png, image 1"),
        ({1: "absent.png"}, "lists none of the files"),
    ],
)
def test_files_that_cannot_be_matched_are_refused(
    tmp_path: Path, names: dict[int, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64), "teal").save(tmp_path / folder / "1.png")
    own = write_set(tmp_path / "set.json", names)
    inputs = [str(tmp_path / "x"), str(tmp_path / "y")]
    assert main(["detect", *inputs, "--coco", "--annotations", str(own)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("fake_device")
def test_categories_without_a_class_of_the_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "1.png")
    categories = [{"id": 1, "name": "giraffe"}]
    own = write_set(tmp_path / "set.json", {1: "1.png"}, categories=categories)
    arguments = ["detect", str(tmp_path / "1.png"), "--coco", "--annotations", str(own)]
    assert main(arguments) == 2
    assert "giraffe" in capsys.readouterr().err


@pytest.mark.usefixtures("fake_device")
def test_classes_without_a_category_are_left_out_and_reported(
    tmp_path: Path, detect: Detect
) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "1.png")
    plain = detect(tmp_path / "1.png", "--threshold", "0")
    kept = CODE_LABELS[plain["annotations"][0]["category_id"]]
    categories = [{"id": 77, "name": kept}]
    own = write_set(tmp_path / "set.json", {5: "1.png"}, categories=categories)
    found = detect(tmp_path / "1.png", "--threshold", "0", "--annotations", own)
    assert {row["category_id"] for row in found["annotations"]} == {77}
    assert len(found["annotations"]) < len(plain["annotations"])
    assert "no category for 4 of the model's classes" in found["said"]


@pytest.mark.usefixtures("fake_device")
@pytest.mark.parametrize("name", ["absent.png", "*.gif", "empty"])
def test_input_without_a_file_is_an_error_with_annotations_too(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "1.png")
    own = write_set(tmp_path / "set.json", {5: "1.png"})
    inputs = [str(tmp_path / "1.png"), str(tmp_path / name)]
    assert main(["detect", *inputs, "--coco", "--annotations", str(own)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.usefixtures("fake_device")
def test_input_that_cannot_be_looked_up_is_an_error_with_annotations_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "1.png")
    own = write_set(tmp_path / "set.json", {5: "1.png"})
    name = tmp_path / ("n" * 300)
    inputs = [str(tmp_path / "1.png"), str(name)]
    assert main(["detect", *inputs, "--coco", "--annotations", str(own)]) == 2
    assert capsys.readouterr().err == f"lite-detr: {name}: File name too long\n"


@pytest.mark.usefixtures("fake_device")
def test_annotations_require_coco_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "a.jpg", "--json", "--annotations", "set.json"]) == 2
    assert "add --coco" in capsys.readouterr().err


@pytest.mark.usefixtures("fake_device")
@pytest.mark.parametrize(
    ("names", "ids", "source"),
    [
        (["000000397133.png", "7.png"], [397133, 7], "file_names"),
        (["7.png", "007.png"], [1, 2], "places"),
        (["7.png", "cat.png"], [1, 2], "places"),
        (["٣.png"], [1], "places"),
        ([f"{2**60}.png"], [1], "places"),
    ],
)
def test_image_ids_are_numeric_file_names_or_places_and_info_says_which(
    tmp_path: Path, detect: Detect, names: list[str], ids: list[int], source: str
) -> None:
    for name in names:
        Image.new("RGB", (64, 64), "teal").save(tmp_path / name)
    found = detect(*(tmp_path / name for name in names))
    assert [image["id"] for image in found["images"]] == ids
    assert found["info"]["image_ids"] == source
    assert {row["image_id"] for row in found["annotations"]} <= set(ids)
    assert ("places of the files" in found["info"]["description"]) == (source == "places")
