"""An engine process, seen from the edge: start, messages, kill, wait for its exit."""

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
from service.ipc.child_process import is_stopped
from service.ipc.doorbell import EdgeDoorbell
from service.ipc.messages import Message, Start
from service.ipc.slots import SlotMemory

_ROOT = Path(__file__).resolve().parents[2]  # where `service` and `model` are imported from
_REAP_SECONDS = 10.0  # of a process that was killed because the rest of its start failed
_DRAIN_SECONDS = 1.0  # how long unread messages of an ended engine are still read
_STOPPED_SECONDS = 0.5  # a process that continues sooner (a debugger attached) is left running
_POLL_SECONDS = 0.05  # while a process is reaped, in case the thread that waits for it has failed


class EngineProcess:
    """A running engine process; wait for its exit (`reap`) before its slots are reused."""

    def __init__(self, process: subprocess.Popen[bytes], doorbell: EdgeDoorbell) -> None:
        """Takes over a running process; use `start` to create one."""
        self._process = process
        self._doorbell = doorbell
        self._on_stopped: Callable[[], None] = _ignore
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, start: Start, memory: SlotMemory) -> EngineProcess:
        """Starts an engine process and sends it what to run.

        Raises:
            Exception: if that fails (no process, no thread); no process is left behind.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                doorbell = await EdgeDoorbell.open(ours)
            except BaseException:  # including cancellation, if the service ends meanwhile
                ours.close()
                raise
            try:
                process = _spawn(theirs.fileno(), memory.fd, start.weights_fd)
            except BaseException:
                doorbell.abort()
                raise
        engine = cls(process, doorbell)
        try:
            engine._start_waiting()
            engine.send(start)
        except BaseException:
            engine.close()
            engine.kill()
            await engine.reap(_REAP_SECONDS)
            raise
        return engine

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status (negative: the signal that ended it); None while the process runs."""
        return self._exited.result() if self._exited.done() else None

    def send(self, message: Message) -> None:
        """Sends a message to the engine."""
        self._doorbell.send(message)

    async def receive(self) -> Message | None:
        """Waits for the engine's next message; returns None once the engine has ended.

        Raises:
            BadMessage: if the message is invalid.
        """
        return await self._doorbell.receive()

    async def listen(self, handle: Callable[[Message], None]) -> None:
        """Calls `handle` for each message; returns once the engine has ended.

        Raises:
            BadMessage: if a message is invalid.
            Exception: raised by `handle`; no further message is read.
        """
        await self._doorbell.listen(handle)

    def watch_stops(self, on_stopped: Callable[[], None]) -> None:
        """Calls `on_stopped` if the process is stopped (SIGSTOP) and does not continue soon."""
        self._on_stopped = on_stopped

    def kill(self) -> None:
        """Kills the process, even if it is stopped or hangs; `receive` then returns None."""
        self._process.kill()

    async def reap(self, timeout_seconds: float) -> bool:
        """Waits for the exit of the process, after which it cannot write to slots.

        Returns:
            False if it still exists after the timeout (blocked in the kernel).
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while not self._exited.done():
            status = self._process.poll()
            left = deadline - loop.time()
            if status is not None:
                self._exited.set_result(status)
            elif left <= 0:
                return False
            else:
                await asyncio.wait([self._exited], timeout=min(left, _POLL_SECONDS))
        return True

    def close(self) -> None:
        """Closes the edge's end of the doorbell; no further message is received."""
        self._doorbell.abort()

    def _start_waiting(self) -> None:
        """Starts the thread that waits for stops and the exit of the process."""
        loop = asyncio.get_running_loop()
        name = f"engine-{self.pid}"
        threading.Thread(target=self._wait, args=(loop,), name=name, daemon=True).start()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while _wait_for_stop(self._process.pid):
                loop.call_soon_threadsafe(loop.call_later, _STOPPED_SECONDS, self._check_stopped)
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._on_exit, loop, status)

    def _check_stopped(self) -> None:
        """Runs some time after the process was stopped."""
        if not self._exited.done() and is_stopped(self._process.pid):
            self._on_stopped()

    def _on_exit(self, loop: asyncio.AbstractEventLoop, status: int) -> None:
        if not self._exited.done():
            self._exited.set_result(status)
        # Needed if a grandchild still holds the socket; otherwise end of file came already.
        loop.call_later(_DRAIN_SECONDS, self._doorbell.abort)


def _ignore() -> None:
    """Default of `watch_stops`."""


def _wait_for_stop(pid: int) -> bool:
    """Waits until a child is stopped (True) or ends (False); does not reap it."""
    if sys.platform != "linux":
        return False
    try:
        change = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        if change is None or change.si_code not in {os.CLD_STOPPED, os.CLD_TRAPPED}:
            return False
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)  # clears the report
    except OSError:  # it has ended and was reaped
        return False
    return True


def _spawn(doorbell_fd: int, slots_fd: int, weights_fd: int | None) -> subprocess.Popen[bytes]:
    """Runs `python -m service.engine.main`, which inherits only these file descriptors."""
    command = [sys.executable, "-m", "service.engine.main"]
    command += ["--doorbell-fd", str(doorbell_fd), "--slots-fd", str(slots_fd)]
    command += ["--parent", str(os.getpid())]
    inherited = (doorbell_fd, slots_fd, *(() if weights_fd is None else (weights_fd,)))
    return subprocess.Popen(
        command,
        cwd=_ROOT,
        env=PASSIVE_OMP_WAIT | os.environ,  # set variables take precedence
        stdin=subprocess.DEVNULL,
        stdout=2,  # keeps library output out of the stdout of the command
        pass_fds=inherited,
        process_group=0,  # Ctrl-C in the terminal reaches only the edge
    )
