"""This service as a process under measurement, with the model or with the fake device."""

from __future__ import annotations

import http.client
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from benchmarks.report import ROOT
from benchmarks.serving.servers import HOST, THIS_SERVICE, Server, StartError, free_ports
from service.ipc.child_process import children_of

# Python modules that serve, with their arguments.
SERVE = ("service", "serve")
SERVE_FAKE_DEVICE = ("tests.support.fake_serve",)  # its device sleeps instead of computing
_TIMEOUT_SECONDS = 300.0


class Service(Server):
    """A running service."""

    @property
    def url(self) -> str:
        """The address of its HTTP server."""
        return f"http://{HOST}:{self.port}"

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET request; status 0 without a response."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether /readyz returns 200."""
        return self.get("/readyz")[0] == HTTPStatus.OK

    def wait_until(
        self, ready: bool, timeout_seconds: float = _TIMEOUT_SECONDS, poll_seconds: float = 0.001
    ) -> float:
        """Polls /readyz.

        Returns:
            The time (monotonic) when readiness was first seen as wanted.

        Raises:
            StartError: if the process ends, or after the timeout.
        """
        deadline = time.monotonic() + timeout_seconds
        while self.is_ready() is not ready:
            self.check_running()
            if time.monotonic() > deadline:
                raise StartError(f"not {'' if ready else 'un'}ready in time: {self.log_tail}")
            time.sleep(poll_seconds)
        return time.monotonic()

    def engine_pid(self) -> int:
        """The engine process that was started last."""
        return children_of(self.process.pid)[-1]


def start_service(
    log: Path,
    module: Sequence[str] = SERVE,
    python: str = sys.executable,
    **settings: object,
) -> Service:
    """Starts this service without waiting for its readiness.

    Args:
        log: gets what the service prints.
        module: `SERVE` (and command line options), or `SERVE_FAKE_DEVICE`.
        python: the interpreter.
        **settings: of `service.settings`, or of `tests.support.fake_serve`.
    """
    (port,) = free_ports(1)
    given = {"http_port": port, "grpc_port": -1, "log_level": "error"} | settings
    environment = {f"LITE_DETR_{name.upper()}": str(value) for name, value in given.items()}
    # Its packages may lie in a folder that only this names; peers have interpreters of their own.
    own = os.environ.get("PYTHONPATH") if python == sys.executable else None
    places = [str(ROOT), *filter(None, [own])]
    environment["PYTHONPATH"] = os.pathsep.join(places)
    command = [python, "-m", *module]
    return Service.start(THIS_SERVICE, command, environment, log, port)


@contextmanager
def run_service(
    log: Path,
    module: Sequence[str] = SERVE,
    timeout_seconds: float = _TIMEOUT_SECONDS,
    **settings: object,
) -> Iterator[Service]:
    """Starts this service, waits until it is ready, and stops it at the end.

    Args:
        log: as for `start_service`.
        module: as for `start_service`.
        timeout_seconds: for the start.
        **settings: as for `start_service`.

    Raises:
        StartError: if the process ends, or after the timeout.
    """
    service = start_service(log, module, sys.executable, **settings)
    try:
        ready = service.wait_until(True, timeout_seconds, poll_seconds=0.02)
        service.ready_seconds = ready - service.started
        yield service
    finally:
        service.stop()
