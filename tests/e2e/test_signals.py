"""Signals at any time of the start and of the end of `lite-detr serve`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.ipc.child_process import children_of
from tests.support.running import ROOT, process_has_ended
from tests.support.watched_service import WatchedService


@pytest.fixture
def start() -> Iterator[type[WatchedService]]:
    services: list[WatchedService] = []

    def start_one(**settings: object) -> WatchedService:
        services.append(WatchedService(**settings))
        return services[-1]

    yield start_one  # type: ignore[misc]
    for service in services:
        service.kill()


def _serve(*arguments: str) -> subprocess.Popen[str]:
    """Starts the command, with the default model on a CPU."""
    options = ("--port", "0", "--grpc-port", "-1", "--device", "cpu", "--warm-up-seconds", "0")
    return subprocess.Popen(
        [sys.executable, "-m", "service", "serve", *options, "--log-format", "json", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_until_python_runs(process: subprocess.Popen[str]) -> None:
    """Waits until the command handles signals: nothing can be done before its first line."""
    status = Path(f"/proc/{process.pid}/status")
    caught = 1 << (signal.SIGHUP - 1)
    while not int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) & caught:
        assert process.poll() is None
        time.sleep(0.001)


@pytest.mark.slow
def test_sighup_at_any_time_of_the_start_is_not_fatal() -> None:
    process, lines = _serve(), []
    _wait_until_python_runs(process)
    assert process.stderr is not None
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            process.send_signal(signal.SIGHUP)
            time.sleep(0.02)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for line in process.stderr:
            lines.append(line)
            if "Ready after" in line:
                break
    finally:
        stop.set()
        sender.join()
    assert "Ready after" in lines[-1], lines
    process.send_signal(signal.SIGTERM)
    with process.stderr:
        lines += process.stderr.readlines()
    assert process.wait(60) == 0, lines
    assert "all accepted requests were completed" in lines[-1]
    # The model is loaded once: its file did not change.
    assert sum("engine ready" in line for line in lines) == 1


@pytest.mark.parametrize(
    "seconds", [0, 0.2, 0.5, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 2))]
)
def test_sigterm_at_any_time_of_the_start_ends_the_service_and_its_engine(seconds: float) -> None:
    process = _serve()
    _wait_until_python_runs(process)
    time.sleep(seconds)
    children = _descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert all(process_has_ended(pid) for pid in children)


def _descendants(parent: int) -> list[int]:
    return [pid for child in children_of(parent) for pid in (child, *_descendants(child))]


@pytest.mark.slow
def test_a_sighup_during_the_drain_loads_nothing(
    start: type[WatchedService],
) -> None:
    service = start(drain_delay_seconds=1.5)
    service.wait_until_ready()
    service.process.send_signal(signal.SIGTERM)
    service.wait_for_line("Draining")
    service.process.send_signal(signal.SIGHUP)
    assert service.end() == 0, service.lines
    assert not service.count("reload requested")
