"""Commands do not replace files unless --overwrite is given, and do not read their own outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.cli import main
from tests.support.fake_device import FakeDevice, FakeDeviceSpec
from tests.support.small_weights import write_small


@pytest.fixture(autouse=True)
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "service.cli.offline_run.open_device", lambda _settings: FakeDevice(FakeDeviceSpec())
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (320, 200), "teal").save(folder / "a.jpg")
    Image.new("RGB", (100, 300), "red").save(folder / "b.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("inputs", [".", "a.jpg", "*.jpg"])
def test_saving_onto_the_inputs_is_refused_before_anything_is_written(
    photos: Path, inputs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(photos)
    assert main(["detect", str(photos / inputs), "--save", str(photos)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "a.jpg; choose another folder, or add --overwrite" in line
    assert contents(photos) == before


def test_second_run_replaces_drawings_only_on_request(photos: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    arguments = ["detect", str(photos), "--save", str(drawn)]
    assert main(arguments) == 0
    first = contents(drawn)
    (drawn / "a.jpg").write_bytes(b"kept")
    assert main(arguments) == 2
    assert (drawn / "a.jpg").read_bytes() == b"kept"
    assert main([*arguments, "--overwrite"]) == 0
    assert contents(drawn) == first


def test_drawing_of_one_input_never_replaces_another_input(photos: Path) -> None:
    Image.new("RGB", (40, 40), "green").save(photos / "b.bmp")
    before = contents(photos)
    assert main(["detect", str(photos / "b.bmp"), str(photos / "b.png"), "--overwrite",
                 "--save", str(photos)]) == 0  # fmt: skip
    after = contents(photos)
    assert after["b.bmp"] == before["b.bmp"]
    with Image.open(photos / "b-2.png") as drawing_of_bmp, Image.open(photos / "b.png") as other:
        assert (drawing_of_bmp.size, other.size) == ((40, 40), (100, 300))


@pytest.mark.parametrize("inputs", [".", "**/*.jpg", "**/*"])
def test_outputs_below_an_input_folder_are_no_inputs(
    photos: Path, inputs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = photos / "found" / "today"
    arguments = ["detect", str(photos / inputs), "--save", str(drawn), "--overwrite", "--json"]
    names = []
    for _ in range(2):
        assert main(arguments) == 0
        names.append([item["file"] for item in json.loads(capsys.readouterr().out)])
    assert names[0] == names[1]
    assert not any("found" in name for name in names[1])


def test_folder_of_outputs_is_an_input_where_it_is_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = photos / "drawn"
    assert main(["detect", str(photos), "--save", str(drawn)]) == 0
    capsys.readouterr()
    assert main(["detect", str(drawn), "--save", str(drawn), "--json", "--overwrite"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_file_is_not_taken_for_a_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", str(photos), "--save", str(photos / "a.jpg")]) == 2
    assert "--save takes a folder" in capsys.readouterr().err


@pytest.fixture
def scored(tmp_path: Path, photos: Path) -> list[str]:
    """The arguments of a run of `eval` on a small set."""
    pytest.importorskip("faster_coco_eval")
    write_small(tmp_path / "small.safetensors")
    document: dict[str, Any] = {
        "images": [{"id": 5, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 1, 50, 50]}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(document))
    model = ["--model", str(tmp_path / "small.safetensors"), "--device", "cpu"]
    data = ["--annotations", str(tmp_path / "set.json"), "--images", str(photos)]
    return ["eval", *model, *data]


def test_results_replace_a_file_only_on_request(scored: list[str], tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text("mine")
    arguments = [*scored, "--results", str(results)]
    assert main(arguments) == 2
    assert results.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert isinstance(json.loads(results.read_text()), list)


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_results_never_replace_the_annotations(
    scored: list[str], tmp_path: Path, more: list[str]
) -> None:
    annotations = tmp_path / "set.json"
    link = tmp_path / "link.json"
    link.symlink_to(annotations)
    before = annotations.read_text()
    for path in (annotations, link):
        assert main([*scored, "--results", str(path), *more]) == 2
    assert annotations.read_text() == before


def test_results_may_go_to_a_device(scored: list[str]) -> None:
    assert main([*scored, "--results", "/dev/null"]) == 0


def test_results_in_an_absent_folder_are_refused_before_scoring(
    scored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*scored, "--results", str(tmp_path / "absent" / "results.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_errors_in_the_data_exit_with_2_and_oddities_are_printed(
    scored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "set.json"
    document = json.loads(path.read_text())
    document["categories"].append({"id": 8, "name": "cat"})
    path.write_text(json.dumps(document))
    assert main(scored) == 0
    assert "warning: categories without a box: 1" in capsys.readouterr().err
    document["annotations"][0]["image_id"] = 6
    path.write_text(json.dumps(document))
    assert main(scored) == 2
    assert "error: annotations whose image_id no image has: 1" in capsys.readouterr().err
