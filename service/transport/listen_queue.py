"""What the kernel holds for a server that closes: connections not accepted, bytes not read.

Whatever of it is dropped was a request that somebody had sent in time
(`service.transport.http_server`).
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import sys

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_BPF_RET = 0x06  # <linux/filter.h>: end with so many bytes passed


def has_unread(waiting: socket.socket | None) -> bool:
    """Whether there are bytes to read, or connections to accept, that the loop has not seen."""
    if waiting is None or waiting.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(waiting.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def stop_accepting_new(listener: socket.socket) -> None:
    """Lets no further connection come about, so that those made already can all be accepted.

    What a listener that closes has not accepted yet is reset, also where the request is there
    already. So the kernel is told first to drop whatever new clients send to it (a classic BPF
    program that passes nothing); they are refused when it closes.
    """
    if sys.platform != "linux":
        return
    drop_all = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("@HP", 1, ctypes.addressof(drop_all))
    with contextlib.suppress(OSError):  # without it a moment's connections are lost, as elsewhere
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
