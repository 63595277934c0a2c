"""The whole service with the fake device, as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from service.core.sizing import default_decoders
from service.cpus import usable_cpus

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = """
import sys
{run}
sys.exit("torch was imported" if "torch" in sys.modules else status)
"""
_RUN_FAKE = "from tests.support.fake_serve import main; status = main()"
_RUN_TORCH = """
from service.app import run
from service.settings import load_settings
status = run(load_settings())
"""
DEFAULTS = {"log_format": "json", "fake_per_image_ms": "5"}
_ANY_PORTS = {"http_port": "0", "grpc_port": "0"}


class Service:
    """A running service; the lines that it logs are collected.

    It listens on free ports, unless settings name some. The exit status shows that the edge served
    without torch.
    """

    def __init__(self, *, backend: str = "fake", **settings: str) -> None:
        run = {"fake": _RUN_FAKE, "torch": _RUN_TORCH}[backend]
        settings = _ANY_PORTS | settings
        given = {f"LITE_DETR_{name.upper()}": value for name, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _SCRIPT.format(run=run)],
            cwd=ROOT,
            env=os.environ | given,
            stderr=subprocess.PIPE,
            text=True,
        )
        decoders = int(settings.get("decode_threads", "0")) or default_decoders(1, usable_cpus())
        self._num_decode_processes = 1 + decoders + 1  # with their template and the one in reserve
        self.http = httpx.Client(timeout=150)
        self.lines: list[str] = []
        self._output_ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._output_ended = True
            self._changed.notify_all()
        self.process.stderr.close()

    def wait_for_line(self, pattern: str, timeout_seconds: float = 300) -> re.Match[str]:
        """Waits for a line; fails at once if the process ends without it."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._output_ended, timeout_seconds)
            match = found()
            assert match is not None, (pattern, self.lines)
            return match

    @property
    def url(self) -> str:
        return self.wait_for_line(r"listens on (\S+)")[1]

    def wait_until_ready(self) -> None:
        self.wait_for_line("curl --data-binary")

    @property
    def engine_pid(self) -> int:
        return int(self.wait_for_line(r'"pid":(\d+).*engine ready')[1])

    @property
    def grpc_address(self) -> str:
        return self.wait_for_line(r"gRPC: (\S+),")[1]

    def metric(self, name: str) -> float:
        """The value of a gauge or counter without labels on GET /metrics."""
        text = self.http.get(f"{self.url}/metrics").text
        found = re.search(rf"^lite_detr_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found is not None, text
        return float(found[1])

    def wait_for_metric(self, name: str, value: float, timeout_seconds: float = 300) -> None:
        deadline = time.monotonic() + timeout_seconds
        while (is_now := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} stays at {is_now}, not {value}"
            time.sleep(0.05)

    def rss_bytes(self, field: str = "VmRSS") -> int:
        """Memory of the edge process and of the decoders; VmHWM is the sum of their peaks.

        Waits until all decoders have started: on a busy machine they may after the engines.
        """
        deadline = time.monotonic() + 300
        while len(self.decoder_pids()) < self._num_decode_processes:
            assert time.monotonic() < deadline, self.decoder_pids()
            time.sleep(0.05)
        return sum(_memory_bytes(pid, field) for pid in (self.process.pid, *self.decoder_pids()))

    def decoder_pids(self) -> list[int]:
        """The template of the decoders, and its workers."""
        template = [
            pid
            for pid in _children(self.process.pid)
            if b"service.decoding.template" in _read(pid, "cmdline")
        ]
        return [*template, *(worker for pid in template for worker in _children(pid))]

    def end(self) -> int:
        status = self.process.wait(300)
        self._reader.join(120)
        return status

    def kill(self) -> None:
        self.http.close()
        self.process.kill()
        self.end()


def process_has_ended(pid: int) -> bool:
    """Whether a process ends within a minute; an unreaped zombie counts as ended."""
    for _ in range(6000):
        try:
            os.kill(pid, 0)
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if status == "Z":
            return True
        time.sleep(0.01)
    return False


def _read(pid: int, name: str) -> bytes:
    """A file of a process in /proc; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _children(parent: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if f"\nPPid:\t{parent}\n".encode() in _read(pid, "status")]


def _memory_bytes(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$".encode(), _read(pid, "status"), re.MULTILINE)
    return int(found[1]) * 1024 if found is not None else 0
