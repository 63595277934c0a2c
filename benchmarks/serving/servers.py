"""Who is compared: this service and its peers, each a tree of processes on a port of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving import service_process
from benchmarks.serving.images import Photo
from benchmarks.serving.wire_formats import DIALECTS

HOST = "127.0.0.1"
SERVICE = "lite-detr-serving"
_ROOT = Path(__file__).resolve().parent.parent.parent
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Contender:
    """How one server is started and asked.

    Attributes:
        name: in the report.
        package: whose version is reported.
        venv: under the folder of virtual environments; "" for the one that runs this.
        path: that images are posted to.
        dialect: of `benchmarks.serving.wire_formats`.
    """

    name: str
    package: str
    venv: str
    path: str
    dialect: str = "raw"

    def python(self, venvs: Path) -> str:
        """The interpreter that runs it."""
        return str(venvs / self.venv / "bin" / "python") if self.venv else sys.executable


CONTENDERS = (
    Contender(SERVICE, "lite-detr-service", "", "/detect?threshold=0"),
    Contender("fastapi", "fastapi", "", "/detect"),
    Contender("pytriton", "nvidia-pytriton", "pytriton", "/v2/models/detect/infer", "triton"),
    Contender("mlserver", "mlserver", "mlserver", "/v2/models/detect/infer", "oip"),
    Contender("mosec", "mosec", "mosec", "/inference"),
    Contender("litserve", "litserve", "litserve", "/detect", "base64"),
    Contender("bentoml", "bentoml", "bentoml", "/detect"),
    Contender("ray", "ray", "ray", "/detect"),
)


class CannotStart(RuntimeError):
    """A contender that is not installed or does not answer; `str()` says why."""


@dataclass
class Server:
    """A contender that runs."""

    contender: Contender
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    ready_seconds: float = field(default=0.0)

    @classmethod
    def start(
        cls,
        contender: Contender,
        command: list[str],
        environment: Mapping[str, str],
        log: Path,
        port: int,
    ) -> Server:
        """Starts it; what it says goes to `log`."""
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=os.environ | {"PYTHONPATH": str(_ROOT)} | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(contender, port, process, log)

    def wait_until_it_answers(self, photo: Photo, timeout_seconds: float) -> None:
        """Waits for the first right answer.

        Raises:
            CannotStart: where it ends or takes too long.
        """
        started = time.monotonic()
        while time.monotonic() - started < timeout_seconds:
            if self.process.poll() is not None:
                raise CannotStart(f"ended with status {self.process.returncode}: {self.last_words}")
            if self._answers(photo):
                self.ready_seconds = time.monotonic() - started
                return
            time.sleep(0.05)
        raise CannotStart(f"no right answer within {timeout_seconds:g} s: {self.last_words}")

    @property
    def last_words(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-300:] if lines else "it said nothing"

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree so far, ended children included."""
        ticks = 0
        for pid in process_tree(self.process.pid):
            stat = _stat(pid)
            ticks += sum(int(value) for value in stat[11:15]) if stat else 0
        return ticks / _TICKS

    def memory_bytes(self, *, whole_tree: bool = True) -> int:
        """Resident memory of the tree (shared pages count in each), or of the first process."""
        pids = process_tree(self.process.pid) if whole_tree else [self.process.pid]
        stats = (_stat(pid) for pid in pids)
        return sum(int(stat[21]) * _PAGE for stat in stats if stat)

    def pause(self) -> None:
        """Stops the tree where it stands: some servers are busy even when nobody asks them."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets the tree go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends the tree: first asked, then made to."""
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

    def _answers(self, photo: Photo) -> bool:
        dialect = DIALECTS[self.contender.dialect]
        try:
            with socket.create_connection((HOST, self.port), timeout=5) as connection:
                connection.sendall(dialect.request(photo.data, self.contender.path))
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def start_own_service(
    port: int, log: Path, *, module: Sequence[str] = service_process.SERVICE, **settings: object
) -> Server:
    """Starts this service, from this checkout.

    Args:
        port: for HTTP.
        log: gets what the service prints.
        module: the Python module that serves, with its arguments.
        **settings: of `service.settings`, or of `tests.support.fake_serve` for that module.
    """
    contender = next(each for each in CONTENDERS if each.name == SERVICE)
    given = {"http_port": port, "grpc_port": -1, "log_level": "error"} | settings
    environment = {f"LITE_DETR_{name.upper()}": str(value) for name, value in given.items()}
    return Server.start(contender, [sys.executable, "-m", *module], environment, log, port)


def peer_command(contender: Contender, venvs: Path) -> list[str]:
    """A peer's adapter, in its own virtual environment.

    Raises:
        CannotStart: where that is not there.
    """
    python = contender.python(venvs)
    if not Path(python).exists():
        raise CannotStart("it is not installed (benchmarks/serving/peers/install.sh)")
    return [python, "-m", f"benchmarks.serving.peers.with_{contender.name}"]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in held]


def process_tree(root: int) -> list[int]:
    """A process and all that descend from it."""
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


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; [] where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
