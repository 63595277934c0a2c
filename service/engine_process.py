"""One engine process as the edge sees it: started, rung, killed, reaped."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from service.cpus import WAIT_POLITELY
from service.doorbell import EdgeDoorbell
from service.messages import Message, Start
from service.slots import SlotMemory

_ROOT = Path(__file__).resolve().parent.parent  # where `service` and `model` are imported from
_LAST_WORDS_SECONDS = 1.0  # a dead engine's unread answers are read for so long


class EngineProcess:
    """A running engine. `start` makes one; it must be reaped before its slots are used again."""

    def __init__(self, process: subprocess.Popen[bytes], doorbell: EdgeDoorbell) -> None:
        """Watches over a process that runs; `start` makes one."""
        self._process = process
        self._doorbell = doorbell
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

    def kill(self) -> None:
        """Kills it at once (a stopped or hanging one too); `receive` then ends."""
        self._process.kill()

    async def reap(self, timeout_seconds: float) -> bool:
        """Waits until the process is gone for good, so that it can write to no slot any more.

        Returns:
            False where it is still there after the timeout, stuck in the kernel.
        """
        done, _ = await asyncio.wait([self._exited], timeout=timeout_seconds)
        if done:
            self._doorbell.abort()
        return bool(done)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        status = self._process.wait()
        try:
            loop.call_soon_threadsafe(self._on_exit, loop, status)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            return

    def _on_exit(self, loop: asyncio.AbstractEventLoop, status: int) -> None:
        if not self._exited.done():
            self._exited.set_result(status)
        # Usually the end of file came already; not where a grandchild still holds the socket.
        loop.call_later(_LAST_WORDS_SECONDS, self._doorbell.abort)


def _spawn(doorbell_fd: int, slots_fd: int, weights_fd: int | None) -> subprocess.Popen[bytes]:
    """Runs `python -m service.engine` with these descriptors and nothing else of ours."""
    command = [sys.executable, "-m", "service.engine"]
    command += ["--doorbell-fd", str(doorbell_fd), "--slots-fd", str(slots_fd)]
    command += ["--parent", str(os.getpid())]
    inherited = (doorbell_fd, slots_fd, *(() if weights_fd is None else (weights_fd,)))
    return subprocess.Popen(
        command,
        cwd=_ROOT,
        env=WAIT_POLITELY | os.environ,  # the operator's own choice wins
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a library prints must not mix with what the command prints
        pass_fds=inherited,
        process_group=0,  # Ctrl-C on the terminal is for the edge alone
    )
