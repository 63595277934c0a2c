"""`lite-detr detect` with the fake device: the results of the service, and bad files."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import numpy as np
import pytest
from PIL import Image

from model.data import output_files
from model.images.errors import InvalidImage
from model.images.limits import ImageLimits
from model.weights.info import DEFAULT_MODEL_PATH
from service.build import TORCH, Backend, open_detector
from service.cli import main, offline
from service.cli.offline import open_device
from service.cli.offline_settings import offline_settings
from service.engine.device import DeviceResult
from service.rest import create_app
from service.settings import Settings, given_settings
from tests.support.fake_device import FAKE_MODEL, FakeDevice, FakeDeviceSpec
from tests.support.fake_serve import FakeSettings, fake_backend

IMAGE_SIZE = (320, 200)
OPEN_DEVICE = "service.cli.offline_run.open_device"


@pytest.fixture(autouse=True)
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPEN_DEVICE, lambda _settings: FakeDevice(FakeDeviceSpec()))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a teal JPEG, a broken one and, in a subfolder, a red PNG."""
    (tmp_path / "inner").mkdir()
    Image.new("RGB", IMAGE_SIZE, "teal").save(tmp_path / "a.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (tmp_path / "notes.txt").write_text("not an image")
    Image.new("RGB", (100, 300), "red").save(tmp_path / "inner" / "c.png")
    return tmp_path


def detect_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    status = main(["detect", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


async def results_of_service(
    paths: list[Path], settings: Settings, backend: Backend, query: dict[str, str] | None = None
) -> list[Any]:
    results = []
    async with open_detector(settings, backend) as detector:
        transport = httpx.ASGITransport(create_app(detector, settings))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", timeout=60
        ) as client:
            for path in paths:
                headers = {"Content-Type": "image/*"}
                response = await client.post(
                    "/detect", content=path.read_bytes(), headers=headers, params=query
                )
                results.append(response.json())
    return results


def without_run(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs from call to call."""
    return {k: v for k, v in result.items() if k not in ("timings_ms", "request_id", "file")}


async def test_json_equals_the_results_of_the_service(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [folder / "inner" / "c.png", folder / "a.jpg"]
    settings = FakeSettings()
    status, offline = detect_json([str(path) for path in paths], capsys)
    served = await results_of_service(paths, settings, fake_backend(settings))
    assert status == 0
    assert [without_run(result) for result in offline] == [without_run(a) for a in served]
    for mine, theirs in zip(offline, served, strict=True):
        assert mine.keys() - theirs.keys() == {"file"}
        assert mine["timings_ms"].keys() == theirs["timings_ms"].keys()


@pytest.mark.slow
@pytest.mark.skipif(not DEFAULT_MODEL_PATH.exists(), reason="no default model in this checkout")
async def test_json_of_the_default_model_equals_the_result_of_the_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OPEN_DEVICE, open_device)
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 2, (12, 16), dtype=np.uint8).repeat(20, 0).repeat(20, 1) * 255
    path = tmp_path / "blocks.png"
    Image.fromarray(blocks).convert("RGB").save(path)
    _, [mine] = detect_json([str(path), "--threshold", "0", "--device", "cpu"], capsys)
    settings = Settings(device="cpu")
    [theirs] = await results_of_service([path], settings, TORCH, {"threshold": "0"})
    assert mine["model"] == theirs["model"]
    assert mine["image"] == theirs["image"]
    assert len(mine["detections"]) == len(theirs["detections"]) > 0
    scores = [[found["score"] for found in result["detections"]] for result in (mine, theirs)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_array_is_in_the_order_of_the_arguments(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        str(folder / "inner" / "c.png"),
        str(folder / "a.jpg"),
        str(folder / "inner" / "c.png"),
    ]
    status, results = detect_json(names, capsys)
    assert status == 0
    assert [result["file"] for result in results] == names


def test_an_error_of_one_file_does_not_affect_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(folder / name) for name in ("broken.jpg", "a.jpg", "absent.jpg", "notes.txt")]
    status, results = detect_json(names, capsys)
    assert status == 1
    assert [result.get("error", {}).get("code") for result in results] == [
        "invalid_image",
        None,
        "unreadable_file",
        "unsupported_image",
    ]
    assert results[2]["error"]["detail"] == "No such file or directory"
    assert results[1]["detections"]


def test_folder_expands_to_the_images_in_it_and_below(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, results = detect_json([str(folder)], capsys)
    assert status == 1  # for broken.jpg
    assert [Path(result["file"]).name for result in results] == ["a.jpg", "broken.jpg", "c.png"]


def test_quoted_pattern_is_expanded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, results = detect_json([str(folder / "**" / "*.png")], capsys)
    assert status == 0
    assert [Path(result["file"]).name for result in results] == ["c.png"]


def test_file_named_like_a_pattern_is_that_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = folder / "a[1].jpg"
    (folder / "a.jpg").rename(odd)
    status, results = detect_json([str(odd)], capsys)
    assert (status, results[0]["file"]) == (0, str(odd))


def test_empty_folder_and_pattern_without_a_match_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, results = detect_json([str(tmp_path), str(tmp_path / "*.jpg")], capsys)
    assert status == 1
    assert [result["error"]["code"] for result in results] == ["unreadable_file"] * 2


def test_dash_reads_stdin(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (folder / "a.jpg").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    status, [result] = detect_json(["-"], capsys)
    assert status == 0
    assert (result["file"], result["image"]) == ("-", {"width": 320, "height": 200})


def test_options_select_as_over_http(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(folder / "a.jpg")
    _, [every] = detect_json([image, "--threshold", "0"], capsys)
    _, [one] = detect_json([image, "--threshold", "0", "--max-detections", "1"], capsys)
    label = every["detections"][-1]["label"]
    _, [labelled] = detect_json([image, "--threshold", "0", "--labels", label], capsys)
    assert len(every["detections"]) > 1
    assert one["detections"] == every["detections"][:1]
    assert labelled["detections"] == [d for d in every["detections"] if d["label"] == label]


@pytest.mark.parametrize(("tile", "most"), [("auto", 64), ("200x200", 256)])
def test_automatic_tiles_are_those_of_the_service(
    tile: str,
    most: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits = []
    monkeypatch.setattr(offline, "plan_tiles", lambda *given: limits.append(given[-1]))
    status, _ = detect_json([str(folder / "a.jpg"), "--tile", tile], capsys)
    assert (status, limits) == (0, [most])
    assert Settings().max_tiles == 64


def test_tiles_add_to_the_whole_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(folder / "a.jpg")
    _, [plain] = detect_json([image, "--threshold", "0.2"], capsys)
    _, [auto] = detect_json([image, "--threshold", "0.2", "--tile", "auto"], capsys)
    _, [tiled] = detect_json([image, "--threshold", "0", "--tile", "200x200"], capsys)
    assert auto["detections"] == plain["detections"]  # the image is small
    assert tiled["image"] == {"width": 320, "height": 200}
    assert len(tiled["detections"]) > 1
    assert all(0 <= d["box"]["xmin"] <= d["box"]["xmax"] <= 320 for d in tiled["detections"])


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--tile", "9x9", "WIDTHxHEIGHT"),
        ("--overlap", "0.2", "option of tile"),
        ("--threshold", "1.5", "0..1"),
        ("--max-detections", "0", "max_detections"),
        ("--labels", "qr", "qr_code"),
    ],
)
def test_invalid_option_exits_with_2(
    option: str, value: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(folder / "a.jpg"), option, value]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err


@pytest.mark.parametrize(
    "flags",
    [
        ["--labels", "nut, hex"],
        ["--labels", "nut, hex", "--labels", "bolt"],
        ["--labels", "nut, hex", "--labels", "bolt,hook"],
    ],
)
def test_label_with_a_comma_is_one_label_if_the_model_has_it(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
) -> None:
    names = ("nut, hex", "bolt", "hook", "nut", "hex")
    monkeypatch.setattr("tests.support.fake_device.FAKE_MODEL", replace(FAKE_MODEL, labels=names))
    image = [str(folder / "a.jpg"), "--threshold", "0"]
    _, [every] = detect_json(image, capsys)
    status, [found] = detect_json([*image, *flags], capsys)
    kept = {"nut, hex"} | ({"bolt"} if len(flags) > 2 else set())
    kept |= {"hook"} if flags[-1].endswith("hook") else set()
    assert status == 0
    assert found["detections"] == [d for d in every["detections"] if d["label"] in kept]


def test_labels_from_the_environment_may_have_spaces(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITE_DETR_DETECT_LABELS", "aztec, pdf417")
    image = [str(folder / "a.jpg"), "--threshold", "0"]
    _, [by_variable] = detect_json(image, capsys)
    monkeypatch.delenv("LITE_DETR_DETECT_LABELS")
    _, [by_flag] = detect_json([*image, "--labels", "aztec", "--labels", "pdf417"], capsys)
    assert by_variable["detections"] == by_flag["detections"]


SERVER_VARIABLES = {
    "HTTP_PORT": "tcp://10.0.0.1:8000",
    "GRPC_PORT": "8000",
    "MAX_BODY_BYTES": "10",
    "MAX_IMAGE_PIXELS": "10",
    "SLOTS": "none",
    "TLS_KEY_FILE": "/absent",
    "DEVICES": "cuda:7,cuda:8",
    "NAME": "a/b",
}


def test_settings_of_a_service_do_not_reach_other_commands(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = str(folder / "a.jpg")
    _, [expected] = detect_json([image], capsys)
    for name, value in SERVER_VARIABLES.items():
        monkeypatch.setenv(f"LITE_DETR_{name}", value)
    status, [found] = detect_json([image], capsys)
    assert (status, without_run(found)) == (0, without_run(expected))
    settings = offline_settings("m", "cpu", None, None)
    assert settings == given_settings(model="m", device="cpu")
    assert settings.http_port == Settings.model_fields["http_port"].default


@pytest.mark.parametrize("name", ["DEVICE", "PRECISION"])
def test_variables_of_the_flags_of_a_command_reach_it(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv(f"LITE_DETR_{name}", "steam")
    assert main(["detect", str(folder / "a.jpg")]) == 2
    assert f"LITE_DETR_{name}" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--coco"], ["--format", "coco"]], ids=" ".join)
def test_coco_is_one_data_set(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    status = main(["detect", str(folder / "a.jpg"), str(folder / "inner" / "c.png"), *flags])
    document = json.loads(capsys.readouterr().out)
    assert status == 0
    assert [image["id"] for image in document["images"]] == [1, 2]
    assert {row["image_id"] for row in document["annotations"]} == {1, 2}


def test_save_draws_each_image_under_its_own_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    duplicate = folder / "inner" / "a.jpg"
    duplicate.write_bytes((folder / "a.jpg").read_bytes())
    drawn = folder / "out" / "drawn"
    arguments = [str(folder / "a.jpg"), str(duplicate), str(folder / "inner" / "c.png")]
    assert main(["detect", *arguments, "--save", str(drawn)]) == 0
    assert sorted(path.name for path in drawn.iterdir()) == ["a-2.jpg", "a.jpg", "c.png"]
    with Image.open(drawn / "a.jpg") as image:
        assert image.size == IMAGE_SIZE
        assert len(image.getcolors(1 << 16) or ()) > 1


def fail_to_write(names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails as a full disk does, after a part of a file, for outputs of these names."""
    whole = output_files.replacing

    @contextmanager
    def replacing(path: Path, *arguments: Any) -> Iterator[BinaryIO]:
        with whole(path, *arguments) as file:
            yield file
            if path.name in names:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output_files, "replacing", replacing)


def test_an_image_that_cannot_be_saved_keeps_its_result(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.jpg").unlink()
    _, expected = detect_json([str(folder)], capsys)
    fail_to_write({"a.jpg"}, monkeypatch)
    drawn = folder / "drawn"
    status = main(["detect", str(folder), "--save", str(drawn), "--json"])
    captured = capsys.readouterr()
    assert status == 1
    assert [without_run(result) for result in json.loads(captured.out)] == [
        without_run(result) for result in expected
    ]
    not_saved = f"{folder / 'a.jpg'}: the image with its boxes is not saved: "
    assert f"{not_saved}{drawn / 'a.jpg'}: No space left on device" in captured.err.splitlines()
    assert os.listdir(drawn) == ["c.png"]


def test_an_image_that_appears_during_a_run_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = folder / "drawn"
    run = FakeDevice.run

    def run_and_write(*arguments: Any) -> DeviceResult:
        (drawn / "a.jpg").write_bytes(b"of another run")
        return run(*arguments)

    monkeypatch.setattr(FakeDevice, "run", run_and_write)
    images = [str(folder / name) for name in ("a.jpg", "inner/c.png")]
    assert main(["detect", *images, "--save", str(drawn), "--json"]) == 1
    captured = capsys.readouterr()
    assert all(result["detections"] for result in json.loads(captured.out))
    assert "a.jpg exists already" in captured.err
    assert (drawn / "a.jpg").read_bytes() == b"of another run"
    assert sorted(os.listdir(drawn)) == ["a.jpg", "c.png"]


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "not enough memory to draw it"), (InvalidImage("it has changed"), "changed")],
    ids=["memory", "image"],
)
def test_an_image_that_cannot_be_drawn_keeps_its_result(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: str,
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr("service.cli.results.render_detections", fail)
    arguments = [str(folder / "a.jpg"), "--save", str(folder / "drawn"), "--json"]
    assert main(["detect", *arguments]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["detections"]
    assert words in captured.err


def test_table_is_on_stdout_and_the_bar_on_stderr(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["detect", str(folder)])
    captured = capsys.readouterr()
    assert status == 1
    assert "320 x 200" in captured.out
    assert "broken.jpg: " in captured.out
    assert "3/3" in captured.err
    assert "3/3" not in captured.out


@pytest.fixture
def folder_of_bytes(tmp_path: Path) -> Path:
    """A folder of images whose names are no UTF-8, one of them broken, and a usual one."""
    encoded = io.BytesIO()
    Image.new("RGB", IMAGE_SIZE, "teal").save(encoded, "JPEG")
    for name in (b"caf\xe9.jpg", b"plain.jpg", b"\xff\xfe.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes(encoded.getvalue())
    (tmp_path / os.fsdecode(b"no\xe9.jpg")).write_bytes(b"not an image")
    return tmp_path


NAMES_SHOWN = ["caf\ufffd.jpg", "no\ufffd.jpg", "plain.jpg", "\ufffd\ufffd.jpg"]


def test_names_that_are_no_utf_8_are_written_as_valid_json(
    folder_of_bytes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(folder_of_bytes / os.fsdecode(b"\xe9.jpg"))
    status, results = detect_json([str(folder_of_bytes), missing], capsys)
    assert status == 1
    assert [Path(result["file"]).name for result in results] == [*NAMES_SHOWN, "\ufffd.jpg"]
    assert ["detections" in result for result in results] == [True, False, True, True, False]
    assert results[-1]["error"]["detail"] == "No such file or directory"


def test_names_that_are_no_utf_8_are_written_as_coco_and_as_a_table(
    folder_of_bytes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(folder_of_bytes), "--coco"]) == 1
    document = json.loads(capsys.readouterr().out)
    written = [Path(image["file_name"]).name for image in document["images"]]
    assert written == [name for name in NAMES_SHOWN if not name.startswith("no")]
    assert main(["detect", str(folder_of_bytes)]) == 1
    table = capsys.readouterr().out
    assert all(name in table for name in NAMES_SHOWN)


def test_drawn_images_keep_the_bytes_of_their_names(folder_of_bytes: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    main(["detect", str(folder_of_bytes), "--save", str(drawn)])
    assert sorted(map(os.fsencode, os.listdir(drawn))) == [
        b"caf\xe9.jpg",
        b"plain.jpg",
        b"\xff\xfe.jpg",
    ]


def test_special_and_endless_files_do_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(20 << 30)
    names = [str(folder / "pipe.jpg"), "/dev/zero", str(folder / "sparse.jpg")]
    status, results = detect_json([*names, str(folder / "a.jpg")], capsys)
    assert status == 1
    assert [result.get("error", {}).get("detail") for result in results] == [
        "not a regular file but a named pipe",
        "not a regular file but a device",
        f"the image has {20 << 30} bytes; at most {1 << 30} are accepted",
        None,
    ]


def test_a_file_for_which_memory_is_short_does_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("service.cli.offline.decode_image", short_of_memory)
        status, [result] = detect_json([str(folder / "a.jpg")], capsys)
    assert status == 1
    assert result["error"]["code"] == "out_of_memory"


def test_stdin_is_read_up_to_the_limit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ImageLimits(max_bytes=5_000_000, max_pixels=1 << 29)
    monkeypatch.setattr("service.cli.offline_run.FILE_LIMITS", limits)
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr("sys.stdin", endless)
        status, [result] = detect_json(["-"], capsys)
    assert status == 1
    assert result["error"]["code"] == "image_too_large"


def test_the_table_has_the_name_of_a_missing_file_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "nope.jpg", str(folder / "*.none")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "nope.jpg: No such file or directory",
        f"{folder}/*.none: no file matches",
    ]


@pytest.mark.parametrize(
    "name", ["[/] off", "door [left]", "bolt :bomb:", "[red]sign[/red]", "a\\[b]"]
)
def test_the_table_has_the_names_of_classes_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = replace(FAKE_MODEL, labels=(name,) * len(FAKE_MODEL.labels))
    monkeypatch.setattr("tests.support.fake_device.FAKE_MODEL", model)
    assert main(["detect", str(folder / "a.jpg"), "--threshold", "0"]) == 0
    _, columns, *rows = capsys.readouterr().out.splitlines()
    assert columns.split()[0] == "label"
    assert {row.rsplit(maxsplit=5)[0].strip() for row in rows} == {name}


def test_a_name_that_is_too_long_does_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(folder / f"{'n' * 300}.jpg"), str(folder / "a.jpg")]
    status, results = detect_json([*names, "--save", str(folder / "drawn")], capsys)
    assert status == 1
    assert [result["file"] for result in results] == names
    assert results[0]["error"]["detail"] == "File name too long"
    assert results[1]["detections"]
    assert (folder / "drawn" / "a.jpg").is_file()


def test_one_image_has_no_bar(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", str(folder / "a.jpg")]) == 0
    assert capsys.readouterr().err == ""


def test_failing_model_is_an_error_of_that_image(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("bad image for a bad device")

    monkeypatch.setattr("tests.support.fake_device.FakeDevice.run", fail)
    status, [result] = detect_json([str(folder / "a.jpg")], capsys)
    assert status == 1
    assert result["error"]["code"] == "inference_failed"
    assert "bad device" in result["error"]["detail"]
