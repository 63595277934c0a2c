"""One engine process as the edge sees it: started, rung, killed, reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from service.cpus import PASSIVE_OMP_WAIT
from service.ipc.doorbell import EdgeDoorbell
from service.ipc.messages import Message, Start
from service.ipc.slots import SlotMemory

_ROOT = Path(__file__).resolve().parents[2]  # where `service` and `model` are imported from
_LAST_WORDS_SECONDS = 1.0  # a dead engine's unread answers are read for so long
_STOPPED_SECONDS = 0.5  # a stopped engine that goes on by then was only looked at


class EngineProcess:
    """A running engine. `start` makes one; it must be reaped before its slots are used again."""

    def __init__(self, process: subprocess.Popen[bytes], doorbell: EdgeDoorbell) -> None:
        """Watches over a process that runs; `start` makes one."""
        self._process = process
        self._doorbell = doorbell
        self._on_stopped: Callable[[], None] = _do_nothing
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        waiter = threading.Thread(
            target=self._wait, args=(loop,), name=f"engine-{process.pid}", daemon=True
        )
        waiter.start()

    @classmethod
    async def start(cls, start: Start, memory: SlotMemory) -> EngineProcess:
        """Starts an engine and tells it what to be.

        Raises:
            OSError: where the system cannot start a process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                doorbell = await EdgeDoorbell.open(ours)
            except BaseException:  # cancelled: the service ends while the engine starts
                ours.close()
                raise
            try:
                process = _spawn(theirs.fileno(), memory.fd, start.weights_fd)
            except OSError:
                doorbell.abort()
                raise
        engine = cls(process, doorbell)
        engine.send(start)
        return engine

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Its exit status (negative: the signal that ended it); None while it lives."""
        return self._exited.result() if self._exited.done() else None

    def send(self, message: Message) -> None:
        """Rings the engine."""
        self._doorbell.send(message)

    async def receive(self) -> Message | None:
        """The engine's next message; None once it is gone.

        Raises:
            BadMessage: where it talks nonsense.
        """
        return await self._doorbell.receive()

    async def listen(self, take: Callable[[Message], None]) -> None:
        """Hands each message to `take` as it comes; returns once the engine is gone.

        Raises:
            BadMessage: where it talks nonsense.
            Exception: whatever `take` raises; it is given nothing more then.
        """
        await self._doorbell.listen(take)

    def watch_stops(self, on_stopped: Callable[[], None]) -> None:
        """Has `on_stopped` called when the process was stopped (SIGSTOP) and does not go on."""
        self._on_stopped = on_stopped

    def kill(self) -> None:
        """Kills it at once (a stopped or hanging one too); `receive` then ends."""
        self._process.kill()

    async def reap(self, timeout_seconds: float) -> bool:
        """Waits until the process is gone for good, so that it can write to no slot any more.

        Returns:
            False where it is still there after the timeout, stuck in the kernel.
        """
        done, _ = await asyncio.wait([self._exited], timeout=timeout_seconds)
        return bool(done)

    def close(self) -> None:
        """Closes our end of the doorbell, when nothing more is expected of the engine."""
        self._doorbell.abort()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            while _wait_for_stop(self._process.pid):
                loop.call_soon_threadsafe(loop.call_later, _STOPPED_SECONDS, self._look_again)
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._on_exit, loop, status)

    def _look_again(self) -> None:
        """Some time after it was stopped."""
        if not self._exited.done() and _is_stopped(self._process.pid):
            self._on_stopped()

    def _on_exit(self, loop: asyncio.AbstractEventLoop, status: int) -> None:
        if not self._exited.done():
            self._exited.set_result(status)
        # Usually the end of file came already; not where a grandchild still holds the socket.
        loop.call_later(_LAST_WORDS_SECONDS, self._doorbell.abort)


def _do_nothing() -> None:
    """Until somebody wants to know."""


def _wait_for_stop(pid: int) -> bool:
    """Waits until a child is stopped (True) or ends (False), which is left for others to reap."""
    if sys.platform != "linux":
        return False
    try:
        change = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        if change is None or change.si_code not in {os.CLD_STOPPED, os.CLD_TRAPPED}:
            return False
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)  # told once, it is not told again
    except ChildProcessError:  # it ended and was reaped meanwhile
        return False
    return True


def _is_stopped(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state == "T"


def _spawn(doorbell_fd: int, slots_fd: int, weights_fd: int | None) -> subprocess.Popen[bytes]:
    """Runs `python -m service.engine.main` with these descriptors and nothing else of ours."""
    command = [sys.executable, "-m", "service.engine.main"]
    command += ["--doorbell-fd", str(doorbell_fd), "--slots-fd", str(slots_fd)]
    command += ["--parent", str(os.getpid())]
    inherited = (doorbell_fd, slots_fd, *(() if weights_fd is None else (weights_fd,)))
    return subprocess.Popen(
        command,
        cwd=_ROOT,
        env=PASSIVE_OMP_WAIT | os.environ,  # the operator's own choice wins
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a library prints must not mix with what the command prints
        pass_fds=inherited,
        process_group=0,  # Ctrl-C on the terminal is for the edge alone
    )
