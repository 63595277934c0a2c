"""The log never fails and never waits long: a full disk, a reader that stopped or has gone."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.observability import log_output
from service.observability.log_output import LineHandler, LineWriter
from tests.support.images import solid_png
from tests.support.ports import free_port
from tests.support.repository import ROOT

ROOM = 1 << 16  # bytes of a pipe


class Pipe:
    """A pipe with a handler that logs to it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.handler = LineHandler(self.write_end)

    def log(self, message: str, *arguments: object) -> None:
        record = logging.LogRecord("test", logging.INFO, "", 0, message, arguments, None)
        self.handler.handle(record)

    def lines(self) -> list[str]:
        data = b""
        while select.select([self.read_end], [], [], 0)[0]:
            data += os.read(self.read_end, ROOM)
        return data.decode().splitlines()

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr(log_output, "_PATIENCE_SECONDS", 0.01)
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.mark.parametrize("text", ["short", "ü" * 20_000, "a lone surrogate \udcff"])
def test_lines_are_written_whole(pipe: Pipe, text: str) -> None:
    pipe.log(text)
    pipe.log("next")
    assert pipe.lines() == [text.encode("utf-8", "backslashreplace").decode(), "next"]


def test_lines_that_find_no_reader_are_counted(pipe: Pipe) -> None:
    lost: list[None] = []
    log_output.call_when_lines_are_lost(lambda: lost.append(None))
    for _ in range(20):
        pipe.log("x" * 10_000)
    read = pipe.lines()
    assert len(lost) >= 14
    assert read[-1] != "x" * 10_000  # the line that met the full pipe is cut
    pipe.log("after")
    assert pipe.lines() == ["", "after", f"{len(lost)} log lines could not be written"]
    pipe.log("again")
    assert pipe.lines() == ["again"]


def test_a_record_that_cannot_be_formatted_is_one_line(pipe: Pipe) -> None:
    pipe.log("%d images", "many")
    (line,) = pipe.lines()
    assert "'%d images'" in line


@pytest.mark.parametrize("kind", ["full disk", "no reader", "closed descriptor"])
def test_errors_of_writing_do_not_reach_the_caller(pipe: Pipe, kind: str) -> None:
    if kind == "full disk":
        with Path("/dev/full").open("w") as full:
            os.dup2(full.fileno(), pipe.write_end)
        pipe.log("lost")
        return
    fd = os.dup(pipe.read_end if kind == "closed descriptor" else pipe.write_end)
    writer = LineWriter(fd)
    if kind == "closed descriptor":
        os.close(fd)
    else:
        other, ours = os.pipe()
        os.close(other)
        os.dup2(ours, fd)
        os.close(ours)
    assert not writer.write("lost")
    assert writer.lost == 1
    if kind == "no reader":
        os.close(fd)


def test_a_stream_without_a_descriptor_is_written_to() -> None:
    stream = io.StringIO()
    LineHandler(stream).write_line("text")
    assert stream.getvalue() == "text\n"


class Start:
    """Starts services with the fake device, and ends them."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, port: int, log_format: str, stderr: int) -> subprocess.Popen[bytes]:
        settings = {"HTTP_PORT": port, "GRPC_PORT": 0, "LOG_FORMAT": log_format}
        settings["LOG_REQUESTS"] = "true"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_serve"],
            cwd=ROOT,
            env=os.environ | {f"LITE_DETR_{name}": str(value) for name, value in settings.items()},
            stderr=stderr,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def start() -> Iterator[Start]:
    started = Start()
    yield started
    for process in started.processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _works_and_ends(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 120
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        while not _is_ready(client):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(300):  # more than a pipe has room for
            assert client.get("/nothing").status_code == 404
        assert client.post("/detect", content=solid_png((1, 2, 3))).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_service_works_on_a_full_disk(start: Start, log_format: str) -> None:
    port = free_port()
    with Path("/dev/full").open("w") as full:
        _works_and_ends(start(port, log_format, full.fileno()), port)


@pytest.mark.parametrize(
    ("reader", "log_format"),
    [
        ("stopped", "json"),
        ("stopped", "console"),
        ("gone", "json"),
        ("gone", "console"),
    ],
)
@pytest.mark.slow
def test_the_service_works_without_a_reader_of_its_log(
    start: Start, log_format: str, reader: str
) -> None:
    port = free_port()
    process = start(port, log_format, subprocess.PIPE)
    assert process.stderr is not None
    if reader == "gone":
        process.stderr.close()
    _works_and_ends(process, port)


def test_closed_standard_streams_are_replaced() -> None:
    code = "import os, service.__main__ as m; m._open_standard_streams(); "
    code += "import sys; print('text', file=sys.stderr); os.write(3, b'ok')"
    read_end, write_end = os.pipe()
    command = f'exec "$0" -c "$1" 3>&{write_end} 0<&- 1>&- 2>&-'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, code], cwd=ROOT, pass_fds=[write_end], check=False
    )
    os.close(write_end)
    assert (done.returncode, os.read(read_end, 10)) == (0, b"ok")
    os.close(read_end)


def test_characters_that_stdout_does_not_have_are_escaped() -> None:
    code = "import service.__main__ as m; m._open_standard_streams(); print('\\ud800 \u00f6')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout == rb"\ud800 \xf6" + b"\n"


def test_lines_of_the_service_are_json_after_a_reader_has_come_back() -> None:
    """The cut line is the only one that is not JSON."""
    pipe = Pipe()
    try:
        for _ in range(20):
            pipe.handler.write_line(json.dumps({"event": "x" * 10_000}))
        *_, cut = pipe.lines()
        pipe.handler.write_line(json.dumps({"event": "after"}))
        assert not cut.endswith("}")
        assert json.loads(pipe.lines()[1]) == {"event": "after"}
    finally:
        pipe.close()
