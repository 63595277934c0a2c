"""Connections and bytes that the kernel holds for a closing server, not yet accepted or read.

Dropping them would lose requests that clients sent in time (`service.transport.http_server`).
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import sys

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_BPF_RET = 0x06  # <linux/filter.h>: returns how many bytes of a packet to accept


def has_unread(waiting: socket.socket | None) -> bool:
    """Whether a socket has bytes to read, or connections to accept."""
    if waiting is None or waiting.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(waiting.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def stop_accepting_new(listener: socket.socket) -> None:
    """Prevents new connections, so that those already established can all be accepted.

    Closing a listener resets established connections that are not accepted yet, even if their
    request has arrived. So the kernel first drops the packets of new clients (a classic BPF program
    that accepts no bytes); they are refused once the listener closes.
    """
    if sys.platform != "linux":
        return
    drop_all = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("@HP", 1, ctypes.addressof(drop_all))
    with contextlib.suppress(OSError):  # then connections of that moment are reset, as elsewhere
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
