"""Services with the fake device, each with its own fault and load, for tests of alerts."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.images import solid_png
from tests.support.repository import ROOT

FAULT, FAULT_HEX = (9, 8, 7), "090807"
GOOD = solid_png((10, 20, 30))
_TIMEOUT_SECONDS = 120
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Scenario:
    """One service: its settings and load, and the alerts that they must cause."""

    job: str
    alerts: frozenset[str]  # must fire
    settings: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[bytes] = (GOOD,)
    clients: int = 1
    becomes_ready: bool = True
    is_killed: bool = False


class ScenarioService:
    """A service in its own process, and its clients."""

    def __init__(self, scenario: Scenario, log: Path) -> None:
        """Starts the process; its stderr goes to `log`."""
        self.scenario = scenario
        given = {"http_port": "0", "log_format": "json"} | dict(scenario.settings)
        environment = {f"LITE_DETR_{name.upper()}": value for name, value in given.items()}
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fake_serve"],
                cwd=ROOT,
                env=os.environ | environment,
                stderr=stream,
            )
        self._stop = threading.Event()
        self._clients: list[threading.Thread] = []
        self.url = ""

    def wait_until_started(self) -> None:
        """Waits until the port is open and the engine is ready, if it becomes ready."""
        wanted = "curl --data-binary" if self.scenario.becomes_ready else "listens on"
        waited = threading.Event()
        for _ in range(_TIMEOUT_SECONDS * 10):
            output = self._log.read_text()
            if wanted in output:
                match = re.search(r"listens on (http://\S+)", output)
                assert match
                self.url = match[1]
                return
            assert self._process.poll() is None, output
            waited.wait(0.1)
        raise AssertionError(f"{self.scenario.job} did not start: {self._log.read_text()}")

    def begin_load(self) -> None:
        """Starts the clients, which send images until `end`."""
        for _ in range(self.scenario.clients):
            client = threading.Thread(target=self._send)
            client.start()
            self._clients.append(client)

    def kill(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait(_TIMEOUT_SECONDS)

    def end(self) -> None:
        """Stops the clients and kills the process."""
        self._stop.set()
        self.kill()
        for client in self._clients:
            client.join(_TIMEOUT_SECONDS)

    def _send(self) -> None:
        with httpx.Client(timeout=_TIMEOUT_SECONDS) as client:
            for image in itertools.cycle(self.scenario.images):
                if self._stop.wait(_PAUSE_SECONDS):
                    return
                with contextlib.suppress(httpx.HTTPError):  # a scenario may kill the service
                    client.post(f"{self.url}/detect", content=image)


@contextlib.contextmanager
def running_services(
    scenarios: Sequence[Scenario], folder: Path
) -> Iterator[list[ScenarioService]]:
    """Runs all services under load while the block is executed."""
    services: list[ScenarioService] = []
    try:
        for scenario in scenarios:
            services.append(ScenarioService(scenario, folder / f"{scenario.job}.log"))
        for service in services:
            service.wait_until_started()
        for service in services:
            service.begin_load()
        yield services
    finally:
        for service in services:
            service.end()
