"""The template and its workers, seen from the edge: start, send, receive, kill.

Everything runs on the event loop; a worker's death is seen as end of file on its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from service.decoding import messages
from service.decoding.messages import InboxMemory, Message, MessageBuffer
from service.ipc.child_process import children_of, is_stopped
from service.ipc.slots import SlotMemory

_ROOT = Path(__file__).resolve().parents[2]  # where `service` and `model` are imported from
_READ_BYTES = 64 * 1024
# numpy's libraries need no threads here; passed before they are imported.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

_log = structlog.get_logger(__name__)


class TemplateProcess:
    """A running template process."""

    def __init__(self, memory_bytes: int, decode: str) -> None:
        """Starts it; it is usable at once, as commands wait in the socket.

        Args:
            memory_bytes: that one worker may take for decoding.
            decode: "module:function" that decodes.

        Raises:
            OSError: if it cannot be started.
        """
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "service.decoding.template"]
            command += ["--control-fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            command += ["--memory-bytes", str(memory_bytes), "--decode", decode]
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=_ROOT,
                    env=os.environ | _ONE_THREAD,
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,  # Ctrl-C on the terminal is for the edge only
                )
            except OSError:
                self._control.close()
                raise

    @property
    def pid(self) -> int:
        """Of the template itself."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def is_stopped(self) -> bool:
        """Whether this process or one of the workers is stopped (SIGSTOP)."""
        return any(map(is_stopped, (self.pid, *children_of(self.pid))))

    def kill(self) -> None:
        """Ends the template at once, and the kernel the workers, whose sockets read end of file."""
        self._process.kill()

    def fork(self, number: int, end: socket.socket, inbox: InboxMemory) -> None:
        """Makes the template fork a worker.

        Raises:
            OSError: if the template is gone.
        """
        command = messages.CONTROL.pack(messages.START, number)
        socket.send_fds(self._control, [command], [end.fileno(), inbox.fd])

    def kill_worker(self, number: int) -> None:
        """Ends a worker at once; its socket then reads end of file."""
        with contextlib.suppress(OSError):  # the template is gone, and with it the worker
            self._control.send(messages.CONTROL.pack(messages.KILL, number))

    def close(self) -> None:
        """Ends the template and all workers, and waits for the template."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class WorkerProcess:
    """One worker and its inbox."""

    def __init__(self, number: int, template: TemplateProcess, inbox: InboxMemory) -> None:
        """Has a worker forked.

        Args:
            number: of the worker, unique for this template.
            template: forks it.
            inbox: where its files are put; stays the caller's.

        Raises:
            OSError: if the template is gone.
        """
        self.number = number
        self.inbox = inbox
        self.ready = False  # has it started
        self._template = template
        self._attached: SlotMemory | None = None
        self._buffer = MessageBuffer()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            try:
                template.fork(number, theirs, inbox)
            except OSError:
                self._socket.close()
                raise

    @property
    def template_is_running(self) -> bool:
        """Whether the process that forked it has not ended."""
        return self._template.running

    def listen(self, on_message: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        """Calls back with each message, and once when the worker has ended."""
        self._on_message = on_message
        self._on_end = on_end
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def send(self, kind: int, payload: bytes) -> None:
        """Sends a task; a message to a dead worker is lost, and `on_end` follows."""
        try:
            self._socket.sendall(messages.encode(kind, payload))
        except OSError:
            return

    def attach(self, slots: SlotMemory) -> None:
        """Makes the worker map these slots, unless it has."""
        if self._attached is slots:
            return
        self._attached = slots
        layout = slots.layout
        payload = messages.pack_attach(layout.count, layout.image_bytes, layout.max_detections)
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, [messages.encode(messages.ATTACH, payload)], [slots.fd])

    def detach(self, slots: SlotMemory) -> None:
        """Makes the worker unmap these slots after its current task, if it has mapped them."""
        if self._attached is slots:
            self._attached = None
            self.send(messages.DETACH, b"")

    def kill(self) -> None:
        """Ends the worker at once."""
        self._template.kill_worker(self.number)

    def close(self) -> None:
        """Stops listening and closes the socket."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._on_end()
            return
        self._buffer.feed(data)
        while (message := self._buffer.take()) is not None:
            if message.kind == messages.READY:
                self.ready = True
            else:
                self._handle(message)

    def _handle(self, message: Message) -> None:
        """Passes on a message; an unexpected error costs the worker, which is then replaced."""
        try:
            self._on_message(message)
        except Exception:
            _log.exception("unexpected error; killing the decoder")
            self.kill()
