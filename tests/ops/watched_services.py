"""Services with the fake device, each with a fault and a load of its own, to be watched."""

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
_PATIENCE_SECONDS = 120
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Scenario:
    """One service: what is wrong with it, what its clients send, and who is called then."""

    job: str
    alerts: frozenset[str]  # those that must fire
    settings: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[bytes] = (GOOD,)
    clients: int = 1
    waits_until_ready: bool = True
    is_killed: bool = False


class WatchedService:
    """A service as a process of its own, with clients that never tire."""

    def __init__(self, scenario: Scenario, log: Path) -> None:
        """Starts the process; `log` gets what it says."""
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

    def wait_until_it_listens(self) -> None:
        """Waits for the address, and for the engine where the scenario has one that starts."""
        wanted = "curl --data-binary" if self.scenario.waits_until_ready else "listens on"
        waited = threading.Event()
        for _ in range(_PATIENCE_SECONDS * 10):
            said = self._log.read_text()
            if wanted in said:
                match = re.search(r"listens on (http://\S+)", said)
                assert match
                self.url = match[1]
                return
            assert self._process.poll() is None, said
            waited.wait(0.1)
        raise AssertionError(f"{self.scenario.job} did not start: {self._log.read_text()}")

    def begin_load(self) -> None:
        """Lets the clients send, one picture after another, until `end`."""
        for _ in range(self.scenario.clients):
            client = threading.Thread(target=self._send)
            client.start()
            self._clients.append(client)

    def kill(self) -> None:
        """Ends the process without a word."""
        self._process.kill()
        self._process.wait(_PATIENCE_SECONDS)

    def end(self) -> None:
        """Ends clients and process."""
        self._stop.set()
        self.kill()
        for client in self._clients:
            client.join(_PATIENCE_SECONDS)

    def _send(self) -> None:
        with httpx.Client(timeout=_PATIENCE_SECONDS) as client:
            for picture in itertools.cycle(self.scenario.pictures):
                if self._stop.wait(_PAUSE_SECONDS):
                    return
                with contextlib.suppress(httpx.HTTPError):  # it may be killed, on purpose
                    client.post(f"{self.url}/detect", content=picture)


@contextlib.contextmanager
def watched_services(scenarios: Sequence[Scenario], folder: Path) -> Iterator[list[WatchedService]]:
    """All services, up and under load; on leaving, all ended."""
    services: list[WatchedService] = []
    try:
        for scenario in scenarios:
            services.append(WatchedService(scenario, folder / f"{scenario.job}.log"))
        for service in services:
            service.wait_until_it_listens()
        for service in services:
            service.begin_load()
        yield services
    finally:
        for service in services:
            service.end()
