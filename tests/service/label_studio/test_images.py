"""Images are read from one Label Studio only: its address, its files, within limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.label_studio.images import Origin
from service.settings import SettingsError, load_settings
from tests.service.label_studio.conftest import Connect, LabelStudio, MakeImage
from tests.service.label_studio.test_protocol import request_of

ORIGIN = Origin.of("http://studio:8080")
BELOW = Origin.of("https://example.com/studio/")


@pytest.mark.parametrize(
    ("origin", "text", "path"),
    [
        (ORIGIN, "/data/upload/1/a.jpg", "/data/upload/1/a.jpg"),
        (ORIGIN, "data/upload/1/a.jpg", "/data/upload/1/a.jpg"),
        (ORIGIN, "http://studio:8080/data/upload/1/a.jpg", "/data/upload/1/a.jpg"),
        (ORIGIN, "HTTP://STUDIO:8080/data/a.jpg", "/data/a.jpg"),
        (ORIGIN, "/data/local-files/?d=photos/a.jpg", "/data/local-files/?d=photos/a.jpg"),
        (ORIGIN, "/tasks/3/resolve/?fileuri=czM6", "/tasks/3/resolve/?fileuri=czM6"),
        (ORIGIN, "/data/upload/Größe.jpg", "/data/upload/Gr%C3%B6%C3%9Fe.jpg"),
        (ORIGIN, "/data/upload/a%20b.jpg", "/data/upload/a%20b.jpg"),
        (
            ORIGIN,
            "/data/local-files/?d=my photos/a b.jpg",
            "/data/local-files/?d=my%20photos/a%20b.jpg",
        ),
        (ORIGIN, "/data/upload/a b.jpg", "/data/upload/a%20b.jpg"),
        (BELOW, "/data/upload/a.jpg", "/studio/data/upload/a.jpg"),
        (BELOW, "/studio/data/upload/a.jpg", "/studio/data/upload/a.jpg"),
        (BELOW, "https://example.com:443/studio/data/a.jpg", "/studio/data/a.jpg"),
    ],
)
def test_files_of_the_origin_are_read(origin: Origin, text: str, path: str) -> None:
    assert origin.path_of(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "http://169.254.169.254/data/x",
        "http://studio/data/x",
        "http://studio:8081/data/x",
        "https://studio:8080/data/x",
        "//other/data/x",
        "///other/data/x",
        "http://studio:8080@other/data/x",
        "http://user:pass@studio:8080/data/x",
        "http://studio:8080.other/data/x",
        "http://other#http://studio:8080/data/x",
        "http://[::1/data/x",
        "http://studio:99999/data/x",
        "ftp://studio:8080/data/x",
        "s3://bucket/data/x",
        "file:///data/x",
        "/api/users",
        "/user/login",
        "/logout",
        "/data/../api/users",
        "/data/%2e%2e/api/users",
        "/data/%252e%252e/api",
        "/data\\..\\api",
        "\\\\other\\data\\x",
        " http://other/data/x",
        "/data/a\r\nHost: other",
        "/data/a\x00",
        "",
        "/" + "a" * 5000,
    ],
)
def test_everything_else_is_not_read(text: str) -> None:
    assert ORIGIN.path_of(text) is None


async def _predict(
    connect: Connect, label_studio: LabelStudio, token: Path | None, *values: Any
) -> Any:
    given = {"label_studio_url": label_studio.url, "label_studio_token_file": token}
    async with connect(**given) as client:
        return await client.post("/predict", json=request_of(*values))


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("legacy\n")
    return path


async def test_an_uploaded_file_is_read_with_the_token(
    connect: Connect, label_studio: LabelStudio, legacy: Path, image: MakeImage
) -> None:
    label_studio.files["/data/upload/1/a.jpg"] = image((200, 100))
    values = ("/data/upload/1/a.jpg", f"{label_studio.url}/data/upload/1/a.jpg")
    response = await _predict(connect, label_studio, legacy, *values)
    assert [len(each["result"]) for each in response.json()["results"]] == [2, 2]
    assert label_studio.requests == [("/data/upload/1/a.jpg", "Token legacy")] * 2


async def test_a_personal_token_is_exchanged_once_and_again_when_it_is_refused(
    connect: Connect, label_studio: LabelStudio, tmp_path: Path, image: MakeImage
) -> None:
    token = tmp_path / "token"
    token.write_text("a.b.c")
    label_studio.accepted = "Bearer first"
    label_studio.files["/data/a.jpg"] = image()
    given = {"label_studio_url": label_studio.url, "label_studio_token_file": token}
    async with connect(**given) as client:
        for accepted in ("Bearer first", "Bearer first", "Bearer second"):
            label_studio.accepted = accepted
            response = await client.post("/predict", json=request_of("/data/a.jpg"))
            assert response.status_code == 200, response.text
    assert [value for path, value in label_studio.requests if "refresh" in path] == ["a.b.c"] * 2


def _replace(path: Path, text: str) -> None:
    """Replaces a file by rename, as Kubernetes does with a Secret."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.rename(path)


@pytest.mark.parametrize("refused", [True, False])
async def test_a_replaced_token_is_used_without_a_restart(
    connect: Connect, label_studio: LabelStudio, legacy: Path, image: MakeImage, refused: bool
) -> None:
    label_studio.files["/data/a.jpg"] = image()
    given = {"label_studio_url": label_studio.url, "label_studio_token_file": legacy}
    async with connect(**given) as client:
        assert (await client.post("/predict", json=request_of("/data/a.jpg"))).status_code == 200
        _replace(legacy, "rotated\n")
        label_studio.accepted = "Token rotated" if refused else "Token legacy"
        for _ in range(1 if refused else 2):  # while the last one is accepted, once it is stable
            response = await client.post("/predict", json=request_of("/data/a.jpg"))
            assert response.status_code == 200, response.text
            label_studio.accepted = "Token rotated"
        label_studio.requests.clear()
        assert (await client.post("/predict", json=request_of("/data/a.jpg"))).status_code == 200
    assert label_studio.requests == [("/data/a.jpg", "Token rotated")]


@pytest.mark.parametrize("text", ["d.e.f", "legacy"])
async def test_a_replaced_personal_token_is_exchanged_without_a_restart(
    connect: Connect, label_studio: LabelStudio, tmp_path: Path, image: MakeImage, text: str
) -> None:
    token = tmp_path / "token"
    token.write_text("a.b.c")
    label_studio.accepted = "Bearer first"
    label_studio.files["/data/a.jpg"] = image()
    given = {"label_studio_url": label_studio.url, "label_studio_token_file": token}
    async with connect(**given) as client:
        assert (await client.post("/predict", json=request_of("/data/a.jpg"))).status_code == 200
        _replace(token, text)
        label_studio.personal = "d.e.f"
        label_studio.accepted = "Bearer second" if text == "d.e.f" else "Token legacy"
        response = await client.post("/predict", json=request_of(*["/data/a.jpg"] * 8))
        assert response.status_code == 200, response.text
        assert all("result" in each for each in response.json()["results"])
    exchanges = [value for path, value in label_studio.requests if "refresh" in path]
    assert exchanges == ["a.b.c", *(["d.e.f"] if text == "d.e.f" else [])]


async def test_a_first_exchange_that_is_refused_reads_the_file_again(
    connect: Connect, label_studio: LabelStudio, tmp_path: Path, image: MakeImage
) -> None:
    token = tmp_path / "token"
    token.write_text("a.b.c")
    label_studio.files["/data/a.jpg"] = image()
    label_studio.accepted, label_studio.personal = "Bearer first", "d.e.f"
    given = {"label_studio_url": label_studio.url, "label_studio_token_file": token}
    async with connect(**given) as client:
        _replace(token, "d.e.f")
        assert (await client.post("/predict", json=request_of("/data/a.jpg"))).status_code == 200
    exchanges = [value for path, value in label_studio.requests if "refresh" in path]
    assert exchanges == ["a.b.c", "d.e.f"]


async def test_tasks_that_waited_for_a_failed_exchange_do_not_repeat_it(
    connect: Connect, label_studio: LabelStudio, tmp_path: Path, image: MakeImage
) -> None:
    token = tmp_path / "token"
    token.write_text("a.b.c")
    label_studio.files["/data/a.jpg"] = image()
    label_studio.personal = "d.e.f"
    given = {"label_studio_url": label_studio.url, "label_studio_token_file": token}
    async with connect(**given) as client:
        response = await client.post("/predict", json=request_of(*["/data/a.jpg"] * 8))
        assert response.status_code != 200
    assert [value for path, value in label_studio.requests if "refresh" in path] == ["a.b.c"]


@pytest.mark.parametrize("text", [None, "", "two words"])
async def test_a_token_file_that_cannot_be_used_is_logged_once_and_the_last_token_stays(
    connect: Connect,
    label_studio: LabelStudio,
    legacy: Path,
    image: MakeImage,
    text: str | None,
) -> None:
    label_studio.files["/data/a.jpg"] = image()
    given = {"label_studio_url": label_studio.url, "label_studio_token_file": legacy}
    async with connect(**given) as client:
        if text is None:
            legacy.unlink()
        else:
            _replace(legacy, text)
        with capture_logs() as logs:
            for _ in range(4):
                response = await client.post("/predict", json=request_of("/data/a.jpg"))
                assert response.status_code == 200, response.text
            label_studio.accepted = "Token rotated"
            for _ in range(2):
                response = await client.post("/predict", json=request_of("/data/a.jpg"))
                assert response.status_code == 502
            _replace(legacy, "rotated")
            response = await client.post("/predict", json=request_of("/data/a.jpg"))
            assert response.status_code == 200, response.text
    told = [each["event"] for each in logs if "token" in each["event"]]
    assert told == [
        "Label Studio's token not reloaded; the previous one stays in use",
        "Label Studio's token reloaded",
    ]
    assert not any("rotated" in str(each) or "legacy" in str(each) for each in logs)


async def test_what_label_studio_does_not_return_is_an_error(
    connect: Connect, label_studio: LabelStudio, legacy: Path, tmp_path: Path
) -> None:
    label_studio.files["/data/page"] = b"<html>"
    wrong = tmp_path / "wrong"
    wrong.write_text("unknown")
    cases = [
        ("/data/absent.jpg", legacy, 400, "has no file /data/absent.jpg"),
        ("/data/upload/away", legacy, 502, "redirects (302), which is not followed"),
        ("/data/upload/endless", legacy, 502, "larger than 1048576 bytes"),
        ("/data/upload/cut", legacy, 502, "closed the connection before the end of the file"),
        ("/data/page", legacy, 400, "not an image"),
        ("/data/page", wrong, 502, "refused the token (401)"),
        ("http://other/data/a.jpg", legacy, 400, "files of http://127.0.0.1"),
    ]
    for value, token, status, words in cases:
        response = await _predict(connect, label_studio, token, value)
        assert response.status_code == status, response.text
        assert words in response.json()["detail"]
    assert not any("169.254" in path for path, _ in label_studio.requests)


async def test_a_slow_label_studio_does_not_outlast_the_deadline(
    connect: Connect, label_studio: LabelStudio
) -> None:
    label_studio.delay_seconds = 0.3
    async with connect(label_studio_url=label_studio.url) as client:
        response = await client.post(
            "/predict", json=request_of("/data/a.jpg"), headers={"X-Request-Timeout-Ms": "50"}
        )
    assert response.status_code == 504, response.text
    assert "while the image was read" in response.json()["detail"]


async def test_a_slow_or_absent_label_studio_is_an_error(
    connect: Connect, label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.label_studio.routes._FILE_SECONDS", 0.1)
    label_studio.delay_seconds = 0.3
    response = await _predict(connect, label_studio, None, "/data/a.jpg")
    assert (response.status_code, response.json()["code"]) == (502, "image_unavailable")
    assert "no response within 0.1 s" in response.json()["detail"]
    async with connect(label_studio_url="http://127.0.0.1:9") as client:
        response = await client.post("/predict", json=request_of("/data/a.jpg"))
    assert "cannot be reached" in response.json()["detail"]


@pytest.mark.parametrize("text", ["", "two words", "zwölf", "a\nb"])
def test_a_token_file_without_one_token_stops_the_start(
    connect: Connect, tmp_path: Path, text: str
) -> None:
    from service.label_studio.token import read_token

    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(SettingsError, match="must have one token"):
        read_token(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_token(tmp_path / "absent")


@pytest.mark.parametrize(
    "given",
    [
        {"label_studio_url": "http://x"},
        {"label_studio": True, "label_studio_token_file": "token"},
        {"label_studio": True, "label_studio_url": "x"},
        {"label_studio": True, "label_studio_url": "ftp://x"},
        {"label_studio": True, "label_studio_url": "http://user:password@x"},
        {"label_studio": True, "label_studio_url": "http://x:99999"},
        {"label_studio": True, "label_studio_url": "http://x/?a=b"},
    ],
)
def test_settings_that_do_not_fit_stop_the_start(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="label_studio"):
        load_settings(**given)
