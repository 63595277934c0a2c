"""Commands do not replace files unless --overwrite is given, and do not read their own outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    assert "a.jpg is an input of this command" in line
    assert "choose another folder" in line
    assert contents(photos) == before


def test_an_empty_name_is_not_the_current_folder(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    assert main(["detect", ""]) == 1
    assert "the name of the image is empty" in capsys.readouterr().out


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


def _linked(photos: Path, how: str) -> tuple[list[Path], Path]:
    """Inputs and a folder of outputs in which a drawing would have the name of an input."""
    a, b = photos / "a.jpg", photos / "b.png"
    if how == "the same folder":
        return [a, b], photos
    drawn = photos.parent / "drawn"
    drawn.mkdir()
    if how == "a hard link":
        (drawn / "a.jpg").hardlink_to(a)
    elif how == "a hard link to another input":
        (drawn / "a.jpg").hardlink_to(b)
    elif how == "a link to another input":
        (drawn / "b.png").symlink_to(a)
    elif how == "a linked folder":
        drawn.rmdir()
        drawn.symlink_to(photos, target_is_directory=True)
    elif how == "inputs by links":
        (photos.parent / "link.png").symlink_to(b)
        (drawn / "link.png").hardlink_to(b)
        return [a, photos.parent / "link.png"], drawn
    return [a, b], drawn


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        "the same folder",
        "a hard link",
        "a hard link to another input",
        "a link to another input",
        "a linked folder",
        "inputs by links",
    ],
)
def test_drawings_never_replace_an_input_of_the_run(
    photos: Path, how: str, reverse: bool, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, drawn = _linked(photos, how)
    inputs = inputs[::-1] if reverse else inputs
    before = contents(photos)
    assert main(["detect", *map(str, inputs), "--save", str(drawn), *more]) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert contents(photos) == before


@pytest.mark.parametrize("reverse", [False, True])
def test_a_drawing_of_a_name_that_only_its_content_decides_replaces_no_input(
    photos: Path, tmp_path: Path, reverse: bool
) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    unnamed = photos / "c"  # a PNG, so its drawing is c.png
    (photos / "b.png").rename(unnamed)
    (drawn / "c.png").hardlink_to(photos / "a.jpg")
    inputs = [unnamed, photos / "a.jpg"]
    before = contents(photos)
    paths = map(str, inputs[::-1] if reverse else inputs)
    assert main(["detect", *paths, "--save", str(drawn), "--overwrite"]) == 0
    assert contents(photos) == before
    assert sorted(contents(drawn)) == ["a.jpg", "c-2.png", "c.png"]


def test_an_image_from_stdin_is_not_replaced(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = photos / "stdin.jpg"
    (photos / "a.jpg").rename(source)
    before = contents(photos)
    with source.open("rb") as stream:
        saved = os.dup(0)
        os.dup2(stream.fileno(), 0)
        try:
            status = main(["detect", "-", "--save", str(photos), "--overwrite"])
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert status == 2
    assert "stdin.jpg is an input" in capsys.readouterr().err
    assert contents(photos) == before


def test_the_environment_of_one_command_does_not_let_another_overwrite(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["detect", str(photos), "--save", str(tmp_path / "drawn")]
    assert main(arguments) == 0
    for name, status in (("", 2), ("EVAL_", 2), ("DETECT_", 0)):
        with monkeypatch.context() as changed:
            changed.setenv(f"LITE_DETR_{name}OVERWRITE", "1")
            assert main(arguments) == status


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
    drawn, again = photos / "drawn", photos / "again"
    assert main(["detect", str(photos), "--save", str(drawn)]) == 0
    capsys.readouterr()
    assert main(["detect", str(drawn), "--save", str(again), "--json"]) == 0
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


@pytest.mark.parametrize("name", ["small.safetensors", "photos/a.jpg"])
def test_results_never_replace_the_model_or_an_image(
    scored: list[str], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "results.json"
    link.hardlink_to(tmp_path / name)
    before = link.read_bytes()
    for path in (tmp_path / name, link):
        assert main([*scored, "--results", str(path), "--overwrite"]) == 2
        assert "is an input of this command" in capsys.readouterr().err
    assert link.read_bytes() == before


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


def test_a_folder_that_cannot_be_created_is_named_with_its_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "inner"
    assert main(["detect", "absent.jpg", "--save", str(folder)]) == 2
    message = capsys.readouterr().err
    assert message == f"lite-detr: --save: cannot create the folder {folder}: Not a directory\n"


def test_a_full_disk_behind_stdout_is_named() -> None:
    script = (
        "from service.cli.failure import writing_to_stdout, CommandFailed\n"
        "try:\n"
        "    with writing_to_stdout():\n"
        "        print('a' * 100_000)\n"
        "except CommandFailed as error:\n"
        "    raise SystemExit(str(error))\n"
    )
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ended.stderr == b"cannot write to stdout: No space left on device\n"
    assert ended.returncode == 1
