"""With `--log-format json` every line on stderr is JSON, whoever writes it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.certificates import Authority
from tests.support.images import solid_png
from tests.support.repository import ROOT

CRASH, CRASH_HEX = (9, 8, 7), "090807"


class Noisy:
    """A noisy service in its own process; its lines are collected."""

    def __init__(self, *arguments: str, **settings: str) -> None:
        given = {"http_port": "0", "grpc_port": "0", "log_format": "json"} | settings
        environment = {f"LITE_DETR_{name.upper()}": value for name, value in given.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "always", *arguments],
            cwd=ROOT,
            env=os.environ | environment | {"GRPC_VERBOSITY": "info"},
            stderr=subprocess.PIPE,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.decode())
                self._changed.notify_all()
        self.process.stderr.close()

    def wait_for(self, pattern: str) -> re.Match[str]:
        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)

        with self._changed:
            assert self._changed.wait_for(found, 60), "".join(self.lines)
            match = found()
        assert match is not None
        return match

    def end(self) -> int:
        status = self.process.wait(60)
        self._reader.join(60)
        return status

    def events(self) -> list[dict[str, Any]]:
        """All lines, parsed."""
        return [json.loads(line) for line in self.lines]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Noisy]:
    """A whole life: start, requests, an engine that dies, a bad TLS handshake, SIGHUP, SIGTERM."""
    folder: Path = tmp_path_factory.mktemp("life")
    pair = Authority(folder).issue("server")
    service = Noisy(
        "-m",
        "tests.service.observability.noisy_service",
        fake_crash_colour=CRASH_HEX,
        log_requests="true",
        log_level="info",
        drain_delay_seconds="0.1",
        tls_certificate_file=str(pair.certificate),
        tls_key_file=str(pair.key),
    )
    try:
        url = service.wait_for(r"listens on (\S+)")[1]
        port = int(service.wait_for(r"gRPC: \S+:(\d+)")[1])
        service.wait_for("curl --data-binary")
        service.process.send_signal(signal.SIGUSR1)
        service.wait_for("edge fails in a thread")
        with httpx.Client(verify=False, timeout=60) as client:
            assert client.post(f"{url}/detect", content=solid_png((1, 2, 3))).status_code == 200
            assert client.post(f"{url}/detect", content=solid_png(CRASH)).status_code == 500
            client.post(f"{url}/detect", content=b"no image")
        with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
            plain.sendall(b"not TLS" * 100)  # gRPC core logs that the handshake failed
            plain.recv(1000)
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("certificates reloaded")
        service.process.send_signal(signal.SIGTERM)
        assert service.end() == 0
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.end()


def test_every_line_of_a_whole_life_is_json(life: Noisy) -> None:
    for line in life.lines:
        event = json.loads(line)
        assert {"event", "level", "logger", "timestamp"} <= event.keys(), line
    assert life.lines


@pytest.mark.parametrize(
    "text",
    [
        "listens on https://",
        "Ready after",
        "gRPC: ",
        "engine exited",
        "SIGTERM: finishing requests",
        "Draining: still serving",
        "Stopped; ",
    ],
)
def test_the_stages_of_a_life_are_logged(life: Noisy, text: str) -> None:
    assert [event for event in life.events() if text in event["event"]]


@pytest.mark.parametrize("process", ["edge", "engine"])
@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("prints", "warning"),
        ("writes to the descriptor", "warning"),
        ("logs as gRPC core", "error"),
        ("is not UTF-8: \ufffd", "warning"),
        ("warns", "warning"),
        ("xxxxx", "warning"),
    ],
)
def test_what_is_written_to_the_descriptor_is_kept(
    life: Noisy, process: str, text: str, level: str
) -> None:
    found = [e for e in life.events() if process in e["event"] and text in e["event"]]
    assert found
    assert {event["level"] for event in found} == {level}


@pytest.mark.parametrize("process", ["edge", "engine"])
def test_an_exception_of_a_thread_is_one_line(life: Noisy, process: str) -> None:
    found = [
        event
        for event in life.events()
        if f"RuntimeError: {process} fails in a thread" in event.get("exception", "")
    ]
    assert found
    assert all("Traceback" in event["exception"] for event in found)


def test_lines_of_grpc_core_are_kept(life: Noisy) -> None:
    assert [e for e in life.events() if ".cc:" in e["event"] and "ssl" in e["event"].lower()]


def test_the_stop_is_the_last_line(life: Noisy) -> None:
    assert "Stopped; " in life.events()[-1]["event"]


@pytest.mark.parametrize("level", [pytest.param("info", marks=pytest.mark.slow), "error"])
def test_a_failed_start_is_reported_as_json_at_any_level(level: str) -> None:
    service = Noisy(
        "-m",
        "tests.service.observability.noisy_service",
        log_level=level,
        api_keys_file="/nowhere/keys",
    )
    assert service.end() == 1
    (event,) = [e for e in service.events() if e["logger"] == "service.lifecycle"]
    assert event["event"].startswith("Cannot secure the service: /nowhere/keys")
    assert event["level"] == "error"


def test_an_unexpected_exception_is_one_line() -> None:
    script = (
        "import service.app as app\n"
        "def broken(*_): raise ZeroDivisionError('broken')\n"
        "app.listen_all = broken\n"
        "from tests.support.fake_serve import main\n"
        "raise SystemExit(main())\n"
    )
    service = Noisy("-c", script)
    assert service.end() == 1
    (event,) = [e for e in service.events() if e["level"] == "critical"]
    assert "ZeroDivisionError: broken" in event["exception"]


def test_a_long_json_line_of_a_child_is_passed_on_whole() -> None:
    script = """
import json, subprocess, sys
from service.observability.json_stderr import json_stderr
from service.observability.logs import configure_logs
configure_logs("info", "json")
child = "import json, sys; sys.stderr.write(json.dumps({'event': 'x' * 500_000}) + chr(10))"
with json_stderr():
    subprocess.run([sys.executable, "-c", child], check=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=ROOT)
    [line] = done.stderr.splitlines()
    assert json.loads(line) == {"event": "x" * 500_000}
