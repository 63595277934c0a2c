"""A service of one's own to measure: a process on free ports of this machine, and its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ("service", "serve")
FAKE_SERVICE = ("tests.support.fake_serve",)  # with a device that sleeps
_PATIENCE_SECONDS = 300.0


class RunningService:
    """What a benchmark asks of a service that runs."""

    def __init__(self, url: str, edge_pid: int) -> None:
        """Takes what is known of it."""
        self.url = url
        self.edge_pid = edge_pid

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            with urlopen(f"{self.url}/readyz", timeout=10) as answer:
                return int(answer.status) == HTTPStatus.OK
        except OSError:  # 503 too
            return False

    def wait_until(self, ready: bool) -> float:
        """Polls every millisecond or so; returns the time (monotonic) when it was so."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while self.is_ready() is not ready:
            if time.monotonic() > end:
                raise TimeoutError(f"the service did not become {'' if ready else 'un'}ready")
            time.sleep(0.001)
        return time.monotonic()

    def engine_pid(self) -> int:
        """The process that the edge started."""
        children = Path(f"/proc/{self.edge_pid}/task/{self.edge_pid}/children").read_text().split()
        return int(children[-1])

    def resident_bytes(self) -> int:
        """Memory of the edge and of all its engines."""
        children = Path(f"/proc/{self.edge_pid}/task/{self.edge_pid}/children").read_text().split()
        return sum(map(_resident, [self.edge_pid, *map(int, children)]))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@contextmanager
def run_service(
    log: Path, module: Sequence[str] = SERVICE, **settings: object
) -> Iterator[RunningService]:
    """Starts a service, waits until it is ready, and ends it.

    Args:
        log: gets what the service prints.
        module: the Python module that serves, with its arguments: `SERVICE`, or `FAKE_SERVICE`.
        **settings: of `service.settings`.
    """
    given = {"http_port": 0, "grpc_port": -1, "log_format": "json"} | settings
    environment = {f"LITE_DETR_{name.upper()}": str(value) for name, value in given.items()}
    with log.open("w") as words:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env=os.environ | environment,
            stderr=words,
        )
    try:
        service = RunningService(_url(process, log), process.pid)
        service.wait_until(True)
        yield service
    finally:
        process.terminate()
        process.wait(60)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"listens on (\S+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"the service did not start:\n{log.read_text()}")
