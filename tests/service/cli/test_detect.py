"""`lite-detr detect` with the fake device: the service's answers, and bad photos."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.weights.info import DEFAULT_MODEL_PATH
from service.build import TORCH, Backend, open_detector
from service.cli import main
from service.cli.offline import open_device
from service.rest import create_app
from service.settings import Settings
from tests.support.fake_device import FakeDevice, FakeDeviceSpec
from tests.support.fake_serve import FakeSettings, fake_backend

PHOTO_SIZE = (320, 200)
OPEN_DEVICE = "service.cli.offline_run.open_device"


@pytest.fixture(autouse=True)
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPEN_DEVICE, lambda _settings: FakeDevice(FakeDeviceSpec()))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a teal JPEG, a broken one and, in a folder of its own, a red PNG."""
    (tmp_path / "inner").mkdir()
    Image.new("RGB", PHOTO_SIZE, "teal").save(tmp_path / "a.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (tmp_path / "notes.txt").write_text("not a photo")
    Image.new("RGB", (100, 300), "red").save(tmp_path / "inner" / "c.png")
    return tmp_path


def detect_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    status = main(["detect", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


async def answers_of_service(
    paths: list[Path], settings: Settings, backend: Backend, query: dict[str, str] | None = None
) -> list[Any]:
    answers = []
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
                answers.append(response.json())
    return answers


def without_run(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs from call to call."""
    return {k: v for k, v in answer.items() if k not in ("timings_ms", "request_id", "file")}


async def test_json_equals_the_answers_of_the_service(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [photos / "inner" / "c.png", photos / "a.jpg"]
    settings = FakeSettings()
    status, offline = detect_json([str(path) for path in paths], capsys)
    served = await answers_of_service(paths, settings, fake_backend(settings))
    assert status == 0
    assert [without_run(answer) for answer in offline] == [without_run(a) for a in served]
    for mine, theirs in zip(offline, served, strict=True):
        assert mine.keys() - theirs.keys() == {"file"}
        assert mine["timings_ms"].keys() == theirs["timings_ms"].keys()


@pytest.mark.skipif(not DEFAULT_MODEL_PATH.exists(), reason="no default model in this checkout")
async def test_json_of_the_default_model_equals_the_answer_of_the_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OPEN_DEVICE, open_device)
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 2, (12, 16), dtype=np.uint8).repeat(20, 0).repeat(20, 1) * 255
    path = tmp_path / "blocks.png"
    Image.fromarray(blocks).convert("RGB").save(path)
    _, [mine] = detect_json([str(path), "--threshold", "0", "--device", "cpu"], capsys)
    settings = Settings(device="cpu")
    [theirs] = await answers_of_service([path], settings, TORCH, {"threshold": "0"})
    assert mine["model"] == theirs["model"]
    assert mine["image"] == theirs["image"]
    assert len(mine["detections"]) == len(theirs["detections"]) > 0
    scores = [[found["score"] for found in answer["detections"]] for answer in (mine, theirs)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_array_is_in_the_order_of_the_arguments(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        str(photos / "inner" / "c.png"),
        str(photos / "a.jpg"),
        str(photos / "inner" / "c.png"),
    ]
    status, answers = detect_json(names, capsys)
    assert status == 0
    assert [answer["file"] for answer in answers] == names


def test_bad_photo_answers_in_its_place_and_the_others_are_answered(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(photos / name) for name in ("broken.jpg", "a.jpg", "absent.jpg", "notes.txt")]
    status, answers = detect_json(names, capsys)
    assert status == 1
    assert [answer.get("error", {}).get("code") for answer in answers] == [
        "invalid_image",
        None,
        "unreadable_file",
        "unsupported_image",
    ]
    assert "absent.jpg" in answers[2]["error"]["detail"]
    assert answers[1]["detections"]


def test_folder_stands_for_the_images_in_it_and_below(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, answers = detect_json([str(photos)], capsys)
    assert status == 1  # for broken.jpg
    assert [Path(answer["file"]).name for answer in answers] == ["a.jpg", "broken.jpg", "c.png"]


def test_quoted_pattern_is_expanded(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, answers = detect_json([str(photos / "**" / "*.png")], capsys)
    assert status == 0
    assert [Path(answer["file"]).name for answer in answers] == ["c.png"]


def test_file_named_like_a_pattern_is_that_file(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = photos / "a[1].jpg"
    (photos / "a.jpg").rename(odd)
    status, answers = detect_json([str(odd)], capsys)
    assert (status, answers[0]["file"]) == (0, str(odd))


def test_empty_folder_and_fruitless_pattern_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, answers = detect_json([str(tmp_path), str(tmp_path / "*.jpg")], capsys)
    assert status == 1
    assert [answer["error"]["code"] for answer in answers] == ["unreadable_file"] * 2


def test_dash_reads_stdin(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (photos / "a.jpg").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    status, [answer] = detect_json(["-"], capsys)
    assert status == 0
    assert (answer["file"], answer["image"]) == ("-", {"width": 320, "height": 200})


def test_options_select_as_over_http(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = str(photos / "a.jpg")
    _, [every] = detect_json([photo, "--threshold", "0"], capsys)
    _, [one] = detect_json([photo, "--threshold", "0", "--max-detections", "1"], capsys)
    label = every["detections"][-1]["label"]
    _, [labelled] = detect_json([photo, "--threshold", "0", "--labels", label], capsys)
    assert len(every["detections"]) > 1
    assert one["detections"] == every["detections"][:1]
    assert labelled["detections"] == [d for d in every["detections"] if d["label"] == label]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--threshold", "1.5", "0..1"),
        ("--max-detections", "0", "max_detections"),
        ("--labels", "qr", "qr_code"),
    ],
)
def test_impossible_option_answers_2(
    option: str, value: str, words: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(photos / "a.jpg"), option, value]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err


def test_coco_is_one_data_set(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["detect", str(photos / "a.jpg"), str(photos / "inner" / "c.png"), "--coco"])
    document = json.loads(capsys.readouterr().out)
    assert status == 0
    assert [image["id"] for image in document["images"]] == [1, 2]
    assert {row["image_id"] for row in document["annotations"]} == {1, 2}


def test_save_draws_each_photo_under_its_own_name(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = photos / "inner" / "a.jpg"
    twin.write_bytes((photos / "a.jpg").read_bytes())
    drawn = photos / "out" / "drawn"
    arguments = [str(photos / "a.jpg"), str(twin), str(photos / "inner" / "c.png")]
    assert main(["detect", *arguments, "--save", str(drawn)]) == 0
    assert sorted(path.name for path in drawn.iterdir()) == ["a-2.jpg", "a.jpg", "c.png"]
    with Image.open(drawn / "a.jpg") as picture:
        assert picture.size == PHOTO_SIZE
        assert len(picture.getcolors(1 << 16) or ()) > 1


def test_table_is_for_people_and_the_bar_on_stderr(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["detect", str(photos)])
    captured = capsys.readouterr()
    assert status == 1
    assert "320 x 200" in captured.out
    assert "broken.jpg: " in captured.out
    assert "3/3" in captured.err
    assert "3/3" not in captured.out


def test_one_photo_has_no_bar(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", str(photos / "a.jpg")]) == 0
    assert capsys.readouterr().err == ""


def test_failing_model_is_an_error_of_that_photo(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("bad photo for a bad device")

    monkeypatch.setattr("tests.support.fake_device.FakeDevice.run", fail)
    status, [answer] = detect_json([str(photos / "a.jpg")], capsys)
    assert status == 1
    assert answer["error"]["code"] == "inference_failed"
    assert "bad device" in answer["error"]["detail"]
