"""`lite-detr bench --url`: a running service over HTTP and gRPC, and clear errors."""

from __future__ import annotations

import json
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.cli import main
from service.cli.bench_url import LoadFigures, draw_figures, print_figures
from service.load.report import StepReport
from tests.service.oip.running_service import Served, served
from tests.support.images import solid_png
from tests.support.ports import free_port


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(2):
        (tmp_path / "images" / f"{number}.png").write_bytes(solid_png((number, 0, 0)))
    return tmp_path / "images"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_service_is_measured(
    service: Served,
    images: Path,
    protocol: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # which nothing listens on; not used
    url = service.url if protocol == "http" else f"http://{service.grpc}"
    options = ["--images", str(images), "--rates", "40,80", "--step-seconds", "0.25"]
    options += ["--grpc"] if protocol == "grpc" else []
    assert main(["bench", "--url", url, "--json", *options]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["protocol"], figures["images"], figures["interrupted"]) == (protocol, 2, False)
    assert [step["offered_per_s"] for step in figures["steps"]] == [40.0, 80.0]
    for step in figures["steps"]:
        assert step["ok"] == step["sent"] > 0
        assert 0 < step["p50_ms"] <= step["p90_ms"] <= step["p99_ms"] <= step["max_ms"]
        assert step["errors"] == {}


STEPS = (
    StepReport(30.0, 1.0, 30, 30, 29.5, 10.0, 20.0, 30.0, 31.0, {}, 0, 0.5, False, False),
    StepReport(60.0, 1.0, 60, 0, 0.0, *(None,) * 4, {"no response": 60}, 60, 80.0, True, True),
)
FIGURES = LoadFigures("http://a", "http", "model 1", 2, "poisson", 9.0, 30.0, 29.5, True, STEPS)


def test_the_table_has_a_row_for_each_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    print_figures(FIGURES, as_json=False)
    out = capsys.readouterr().out
    for words in ("model 1 at http://a", "p99 ms", "29.50", "60 x no response", "up to 80 ms late"):
        assert words in out
    assert "highest rate without saturation: 30 per second" in out
    assert "Interrupted" in out
    print_figures(replace(FIGURES, sustained_per_s=None), as_json=False)
    assert "Saturated at every rate" in capsys.readouterr().out
    print_figures(replace(FIGURES, sustained_per_s=None, steps=STEPS[1:]), as_json=False)
    out = capsys.readouterr().out
    assert "No step was complete" in out
    assert "Saturated" not in out


def test_the_table_has_name_address_and_errors_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    url = "http://[fe80::1]:8000"
    for name in ("doors [left]", "[/] off", "bolts :bomb:"):
        steps = (replace(STEPS[1], errors={name: 60}),)
        print_figures(replace(FIGURES, model=name, url=url, steps=steps), as_json=False)
        out = capsys.readouterr().out
        assert f"{name} at {url}, http" in out
        assert f"60 x {name}" in out


@pytest.mark.slow  # imports matplotlib
def test_the_plot_is_an_svg_or_png_file(tmp_path: Path) -> None:
    for name in ("load.svg", "load.PNG"):
        draw_figures(FIGURES, tmp_path / name)
    assert ET.parse(tmp_path / "load.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "load.PNG").read_bytes().startswith(b"\x89PNG")


def _error(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    assert main(["bench", *arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("lite-detr: ")
    assert error.count("\n") == 1
    return error


def test_an_image_that_cannot_be_used_is_named(
    service: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    for grpc in ((), ("--grpc",)):
        url = f"http://{service.grpc}" if grpc else service.url
        error = _error(capsys, "--url", url, *grpc, "--images", str(text))
        assert f"the service refuses {text}" in error
    assert "no image files" in _error(capsys, "--url", service.url, "--images", str(tmp_path))
    assert "No such file" in _error(capsys, "--url", service.url, "--images", "/no-such.jpg")


def test_an_absent_service_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert f"cannot connect to {url}: Connection refused" in _error(capsys, "--url", url)
    assert "no gRPC service" in _error(capsys, "--url", url, "--grpc")
    assert "cannot connect" in _error(capsys, "--url", "http://no-such-host.invalid")
    assert "cannot connect" in _error(capsys, "--url", f"http://{'a' * 64}.invalid")


def test_the_port_of_http_is_not_that_of_grpc(
    service: Served, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--images", str(images))
    assert "that of gRPC" in _error(capsys, "--url", service.url, "--grpc", *arguments)
    grpc_url = f"http://{service.grpc}"
    assert "not a Lite DETR service" in _error(capsys, "--url", grpc_url, *arguments)


@pytest.fixture
def scripted() -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """A server whose responses a test sets, by path."""
    responses: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = responses.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Does not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", responses
    server.shutdown()
    server.server_close()
    thread.join()


def test_another_service_and_a_wrong_key_are_named(
    scripted: tuple[str, dict[str, tuple[int, bytes]]],
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, responses = scripted
    arguments = ("--url", url, "--images", str(images))
    cases = [
        ((404, b""), (), "not a Lite DETR service"),
        ((200, b"<html>"), (), "not a Lite DETR service"),
        ((200, b'{"models": []}'), (), "not a Lite DETR service"),
        ((401, b"{}"), (), "requires an API key: see --api-key"),
        ((401, b"{}"), ("--api-key", "x"), "refuses the key"),
        ((403, b"{}"), ("--api-key", "x"), "lacks the scope detect"),
    ]
    for response, more, words in cases:
        responses["/v1/models"] = response
        assert words in _error(capsys, *arguments, *more)
    responses["/v1/models"] = (200, b'{"models": [{"name": "a", "version": "b"}]}')
    responses["/detect"] = (503, b'{"detail": "the model is loading"}')
    assert "not ready: the model is loading" in _error(capsys, *arguments)
    responses["/detect"] = (302, b"")
    assert "with status 302" in _error(capsys, *arguments)
    monkeypatch.setattr("service.load.target._MAX_RESPONSE_BYTES", 1000)
    responses["/detect"] = (200, bytes(1001))
    assert "more than 1000 bytes" in _error(capsys, *arguments)
    monkeypatch.setattr("service.load.target._RESPONSE_SECONDS", -1.0)
    monkeypatch.setattr("socket.socket.settimeout", lambda *_: None)
    assert "does not respond" in _error(capsys, *arguments)
    monkeypatch.undo()
    responses["/detect"] = (200, b"[]")
    options = ("--rates", "100", "--step-seconds", "0.1")
    assert "no request was successful" in _error(capsys, *arguments, *options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "localhost:8000"], "not a URL"),
        (["--url", "ftp://x"], "not a URL"),
        (["--url", "http://x:99999"], "port"),
        (["--url", "http://x y"], "without spaces"),
        (["--url", "http://user:secret@x"], "has a user name"),
        (["--url", "http://x/?key=1"], "has a query"),
        (["--url", "http://x", "--api-key", "a\nb"], "ASCII characters without spaces"),
        (["--url", "http://x", "--api-key", "ключ"], "ASCII characters without spaces"),
        (["--url", "http://x", "--rates", "1,x"], "list of numbers above 0"),
        (["--url", "http://x", "--rates", "nan"], "list of numbers above 0"),
        (["--url", "http://x", "--rates", ","], "list of numbers above 0"),
        (["--url", "http://x", "--rates", "-1"], "list of numbers above 0"),
        (["--url", "http://x", "--step-seconds", "0"], "above 0"),
        (["--url", "http://x", "--max-rate", "inf"], "above 0"),
        (["--url", "http://x", "--plot", "a.pdf"], "neither .png nor .svg"),
        (["--url", "http://x", "--model", "m"], "--model: measures this machine"),
        (["--url", "http://x", "--rates", "1,1e9"], "--rates: a step of 5 s would have more"),
        (["--url", "http://x", "--step-seconds", "1e4"], "--max-rate: a step of 10000 s"),
        (["--grpc"], "--grpc: needs --url"),
        (["--rates", "1"], "--rates: needs --url"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "secret" not in error


def test_a_place_for_the_plot_is_checked_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing = tmp_path / "a.png"
    existing.write_bytes(b"kept")
    arguments = ("--url", "http://127.0.0.1:9", "--plot")
    assert "no folder" in _error(capsys, *arguments, "/no-such-folder/a.png", status=2)
    assert "add --overwrite" in _error(capsys, *arguments, str(existing), status=2)
    more = ("--overwrite", "--images", str(existing))
    assert "is an input" in _error(capsys, *arguments, str(existing), *more, status=2)
    assert "cannot connect" in _error(capsys, *arguments, str(existing), "--overwrite")
    assert existing.read_bytes() == b"kept"
