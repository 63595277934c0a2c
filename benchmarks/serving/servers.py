"""The servers under comparison, and their processes: start, CPU time, memory, pause, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.report import ROOT
from benchmarks.serving.images import EncodedImage
from benchmarks.serving.wire_formats import WIRE_FORMATS

HOST = "127.0.0.1"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class ServerKind:
    """One server software, and the requests that it accepts.

    Attributes:
        name: in the report.
        package: its version is reported.
        venv: folder below that of the virtual environments; "": the present interpreter.
        path: that images are posted to.
        wire_format: key of `WIRE_FORMATS`.
    """

    name: str
    package: str
    venv: str
    path: str
    wire_format: str = "raw"

    def python(self, venvs: Path) -> str:
        """The interpreter that runs it."""
        return str(venvs / self.venv / "bin" / "python") if self.venv else sys.executable


THIS_SERVICE = ServerKind("lite-detr-serving", "lite-detr-service", "", "/detect?threshold=0")
PEERS = (
    ServerKind("fastapi", "fastapi", "", "/detect"),
    ServerKind("pytriton", "nvidia-pytriton", "pytriton", "/v2/models/detect/infer", "triton"),
    ServerKind("mlserver", "mlserver", "mlserver", "/v2/models/detect/infer", "oip"),
    ServerKind("mosec", "mosec", "mosec", "/inference"),
    ServerKind("litserve", "litserve", "litserve", "/detect", "base64"),
    ServerKind("bentoml", "bentoml", "bentoml", "/detect"),
    ServerKind("ray", "ray", "ray", "/detect"),
)


class StartError(RuntimeError):
    """A server that is not installed, ends or does not become ready; `str()` is the reason."""


@dataclass
class Server:
    """A running server: a tree of processes that listens on one port of this machine."""

    kind: ServerKind
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    started: float  # time.monotonic()
    ready_seconds: float = 0.0  # from the start to readiness

    @classmethod
    def start(
        cls,
        kind: ServerKind,
        command: list[str],
        environment: Mapping[str, str],
        log: Path,
        port: int,
    ) -> Self:
        """Starts the process; its stdout and stderr go to `log`."""
        started = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(kind, port, process, log, started)

    def wait_for_detections(self, image: EncodedImage, timeout_seconds: float) -> None:
        """Waits for the first response of 200.

        Raises:
            StartError: if the process ends, or after the timeout.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            self.check_running()
            if self._detects(image):
                self.ready_seconds = time.monotonic() - self.started
                return
            time.sleep(0.05)
        raise StartError(f"no response of 200 within {timeout_seconds:g} s: {self.log_tail}")

    def check_running(self) -> None:
        """Raises StartError if the process has ended."""
        if self.process.poll() is not None:
            raise StartError(f"ended with status {self.process.returncode}: {self.log_tail}")

    @property
    def log_tail(self) -> str:
        """The last lines of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-300:] if lines else "the log is empty"

    def cpu_seconds(self) -> float:
        """User and system time of all processes so far, including children that have ended."""
        return sum(map(_cpu_seconds, process_tree(self.process.pid)))

    def own_cpu_seconds(self) -> float:
        """User and system time of the first process so far, without its children."""
        return _cpu_seconds(self.process.pid, children=False)

    def memory_bytes(self) -> int:
        """Resident memory of all processes; shared pages count in each."""
        stats = (_stat(pid) for pid in process_tree(self.process.pid))
        return sum(int(stat[21]) * _PAGE for stat in stats if stat)

    def pause(self) -> None:
        """Stops all processes with SIGSTOP: some servers use the CPU without any requests."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continues all processes."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends all processes: SIGTERM first, SIGKILL for those that remain."""
        if self.process.poll() is not None:
            return
        self.resume()
        pids = process_tree(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in pids[1:]:
            if _stat(pid):
                os.kill(pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for pid in process_tree(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _detects(self, image: EncodedImage) -> bool:
        wire_format = WIRE_FORMATS[self.kind.wire_format]
        try:
            with socket.create_connection((HOST, self.port), timeout=5) as connection:
                connection.sendall(wire_format.request(image.data, self.kind.path))
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def peer_command(kind: ServerKind, venvs: Path) -> list[str]:
    """The command of a peer's adapter, in its own virtual environment.

    Raises:
        StartError: if the environment does not exist.
    """
    python = kind.python(venvs)
    if not Path(python).exists():
        raise StartError("not installed (benchmarks/serving/peers/install.sh)")
    return [python, "-m", f"benchmarks.serving.peers.with_{kind.name}"]


def free_ports(count: int) -> list[int]:
    """Distinct ports that no process listens on."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in held]


def process_tree(root: int) -> list[int]:
    """A process and all its descendants, the root first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    tree, rest = [], [root]
    while rest:
        pid = rest.pop()
        tree.append(pid)
        rest += children.get(pid, [])
    return tree


def _cpu_seconds(pid: int, *, children: bool = True) -> float:
    """User and system time of a process, and of its children that have ended."""
    return sum(map(int, _stat(pid)[11 : 15 if children else 13])) / _TICKS


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; [] if the process does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
