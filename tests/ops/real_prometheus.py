"""Starts Prometheus and Alertmanager for tests."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.ops.scaled_rules import RULE_FILES, scaled, scaled_rules
from tests.support.ports import free_port
from tests.support.repository import ROOT

ALERTMANAGER_FILE = ROOT / "docker" / "alertmanager" / "alertmanager.yml"
_PATIENCE_SECONDS = 300


def program(name: str, package: str) -> str:
    """The path of a program; skips the test if it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian, Ubuntu: apt install {package})")
    return path


@contextlib.contextmanager
def running(arguments: list[str], ready_url: str, log: Path) -> Iterator[None]:
    """Runs a server process; enters the block once `ready_url` returns 200."""
    with log.open("w") as stream:
        process = subprocess.Popen(arguments, stdout=stream, stderr=stream, cwd=log.parent)
    try:
        for _ in range(_PATIENCE_SECONDS * 10):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(ready_url, timeout=5).status_code == httpx.codes.OK:
                    break
            assert process.poll() is None, log.read_text()
            threading.Event().wait(0.1)
        else:
            raise AssertionError(f"{arguments[0]} is not ready: {log.read_text()}")
        yield
    finally:
        process.terminate()
        process.wait(_PATIENCE_SECONDS)


class Pager:
    """A webhook receiver; keeps the alerts of Alertmanager by request path."""

    def __init__(self) -> None:
        """Listens on a free port."""
        self.received: dict[str, list[dict[str, Any]]] = {}
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.setdefault(self.path, []).extend(json.loads(body)["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Does not log requests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def names(self, path: str) -> set[str]:
        """The names of the alerts that were sent to a path."""
        return {alert["labels"]["alertname"] for alert in self.received.get(path, [])}

    def close(self) -> None:
        """Stops listening."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(_PATIENCE_SECONDS)


@contextlib.contextmanager
def real_alertmanager(pager: Pager, folder: Path, divisor: int) -> Iterator[str]:
    """Runs Alertmanager with the repository's routes; sends to `pager`, yields its address."""
    tool = program("prometheus-alertmanager", "prometheus-alertmanager")
    text = ALERTMANAGER_FILE.read_text(encoding="utf-8").replace("http://pager.example", pager.url)
    document = yaml.safe_load(text)
    for name in ("group_interval", "repeat_interval"):
        document["route"][name] = scaled(document["route"][name], divisor)
    configuration = folder / "alertmanager.yml"
    configuration.write_text(yaml.safe_dump(document))
    port = free_port()
    arguments = [
        tool,
        f"--config.file={configuration}",
        f"--storage.path={folder / 'alertmanager-data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    address = f"127.0.0.1:{port}"
    with running(arguments, f"http://{address}/-/ready", folder / "alertmanager.log"):
        yield address


@contextlib.contextmanager
def real_prometheus(
    targets: Mapping[str, str], alertmanager: str, folder: Path, divisor: int
) -> Iterator[httpx.Client]:
    """Runs Prometheus with the repository's rules, their windows divided by `divisor`.

    Args:
        targets: address to scrape, by job.
        alertmanager: address of Alertmanager.
        folder: for data and configuration.
        divisor: see `scaled_rules`.

    Yields:
        A client of its HTTP API.
    """
    tool = program("prometheus", "prometheus")
    for name in RULE_FILES:
        (folder / name).write_text(scaled_rules(name, divisor))
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": list(RULE_FILES),
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target]}]}
            for job, target in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [
        tool,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus-data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        running(arguments, f"{url}/-/ready", folder / "prometheus.log"),
        httpx.Client(base_url=url, timeout=_PATIENCE_SECONDS) as client,
    ):
        yield client
