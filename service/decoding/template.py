"""The template of the decoder processes: imports the decoders once and forks workers from there.

A fork takes milliseconds and shares the imported code, so a worker that crashed or was killed is
replaced at once. The template stays single-threaded and decodes nothing itself.

    edge --control socket--> template: START (number, two descriptors), KILL (number)
    edge <--socket pair----> worker (`service.decoding.worker`)

Run as `python -m service.decoding.template` by `service.decoding.processes`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import socket
import sys
from collections.abc import Sequence

from model.images import decode, resize
from service.decoding import messages
from service.decoding.messages import InboxMemory
from service.decoding.worker import Decode, Worker
from service.images.allocator import keep_freed_memory
from service.ipc.child_process import (
    end_with_parent,
    ignore_terminal_signals,
    raise_oom_score,
    write_warnings_as_lines,
)

_REAP_SECONDS = 1.0
_OOM_SCORE_ADDED = 600  # the kernel should end decoders before engines and the edge


class Template:
    """Forks workers on request and ends them."""

    def __init__(self, control: socket.socket, memory_bytes: int, decode: Decode) -> None:
        """Prepares; `run` serves the control socket.

        Args:
            control: commands of the edge.
            memory_bytes: that one worker may take for decoding.
            decode: what the workers run.
        """
        self._control = control
        self._memory_bytes = memory_bytes
        self._decode = decode
        self._pids: dict[int, int] = {}  # worker's number -> process id, until it is reaped

    def run(self) -> None:
        """Serves commands until the edge closes its end, then ends all workers."""
        self._control.settimeout(_REAP_SECONDS)
        commands = bytearray()
        fds: list[int] = []
        while True:
            try:
                data, received, _, _ = socket.recv_fds(self._control, 4096, 16)
            except TimeoutError:
                self._reap()
                continue
            if not data:
                break
            commands += data
            fds += received
            while len(commands) >= messages.CONTROL.size:
                command, number = messages.CONTROL.unpack_from(commands)
                del commands[: messages.CONTROL.size]
                self._reap()
                if command == messages.START:
                    self._fork(number, fds.pop(0), fds.pop(0), fds)
                elif number in self._pids:
                    os.kill(self._pids[number], signal.SIGKILL)
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)

    def _fork(self, number: int, socket_fd: int, inbox_fd: int, others: Sequence[int]) -> None:
        template = os.getpid()
        pid = os.fork()
        if pid:
            self._pids[number] = pid
            os.close(socket_fd)
            os.close(inbox_fd)
            return
        status = 1
        try:
            self._control.close()
            for fd in others:  # of workers that are still to be forked
                os.close(fd)
            end_with_parent(template)
            inbox = InboxMemory(inbox_fd, os.fstat(inbox_fd).st_size)
            end = socket.socket(fileno=socket_fd)
            Worker(end, inbox, self._memory_bytes, self._decode).run()
            status = 0
        except OSError:  # the edge is gone
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Takes note of workers that ended."""
        for number, pid in list(self._pids.items()):
            done, _ = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._pids[number]


def main(arguments: Sequence[str]) -> int:
    """Runs the template on the control socket that the edge passed down.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="service.decoding.template", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of the edge")
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--decode", required=True, help="module:function; tests name another one")
    options = parser.parse_args(arguments)
    write_warnings_as_lines()
    ignore_terminal_signals()
    end_with_parent(options.parent)
    raise_oom_score(_OOM_SCORE_ADDED)
    keep_freed_memory()
    decode.prepare_pillow()
    resize.available()
    module, _, function = options.decode.partition(":")
    chosen: Decode = getattr(importlib.import_module(module), function)
    control = socket.socket(fileno=options.control_fd)
    Template(control, options.memory_bytes, chosen).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
