"""Turns everything that is written to stderr into JSON lines.

    loggers of this process ------------------------------------------> stderr
    gRPC core, libc, libraries, child processes --> pipe --> a thread --> stderr

Native code writes to descriptor 2 itself, so the descriptor is replaced. Lines that are JSON
already, those of the engines' loggers, are passed on unchanged.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator

import orjson

from service.observability.log_output import LineHandler

_STDERR = 2
_PIPE_BYTES = 1 << 20  # a writer that finds the pipe full would wait
_MAX_LINE_BYTES = 1 << 20  # longer lines are split, and so are no JSON
_LAST_LINES_SECONDS = 1.0  # for child processes that still have the pipe open
# Lines of gRPC core begin with their severity: "E0000 00:00:1764429557.1 ...", glog's format.
_GLOG = re.compile(rb"([IWEF])\d{4} ")
_GLOG_LEVELS = {b"I": logging.INFO, b"W": logging.WARNING, b"E": logging.ERROR, b"F": logging.FATAL}
_LOGGER = "stderr"


@contextlib.contextmanager
def json_stderr() -> Iterator[None]:
    """Converts what is written to descriptor 2, as a context manager.

    `configure_logs` must have been called with the format JSON. Afterwards descriptor 2 is as
    before.
    """
    handler = _root_handler()
    if handler is None:
        yield
        return
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError, AttributeError):  # not on Linux, or above the user's limit
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    sys.stderr.flush()
    real = os.dup(_STDERR)
    os.dup2(write_end, _STDERR)
    os.close(write_end)
    handler.set_output(real)
    pump = threading.Thread(target=_convert, args=(read_end, handler), name="stderr", daemon=True)
    pump.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(real, _STDERR)  # closes the last write end of this process
        pump.join(_LAST_LINES_SECONDS)
        handler.set_output(_STDERR)
        os.close(real)


def _root_handler() -> LineHandler | None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler):
            return handler
    return None


def _convert(read_end: int, handler: LineHandler) -> None:
    """Converts lines until every write end of the pipe is closed."""
    with open(read_end, "rb") as lines:
        while line := lines.readline(_MAX_LINE_BYTES):
            text = line.strip(b"\r\n\0")
            if not text.strip():
                continue
            if _is_json(text):
                handler.write_line(text.decode())
            else:
                handler.handle(_record(text))


def _is_json(text: bytes) -> bool:
    if not text.startswith(b"{"):
        return False
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def _record(text: bytes) -> logging.LogRecord:
    found = _GLOG.match(text)
    level = _GLOG_LEVELS[found[1]] if found else logging.WARNING
    message = text.decode("utf-8", "replace")
    return logging.LogRecord(_LOGGER, level, "", 0, message, None, None)
