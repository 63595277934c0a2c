"""Writes log lines without ever failing or waiting long.

The disk behind stderr may be full, and the program that reads it may have stopped or ended. The
service continues: lines that cannot be written are counted, and the count is logged once lines can
be written again.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from typing import TextIO

_PIECE_BYTES = 4096  # a pipe that is writable has room for so much: PIPE_BUF of Linux
_PATIENCE_SECONDS = 0.2  # for a slow reader; none once a line was lost, until one is written

_on_lost: list[Callable[[], object]] = []


def call_when_lines_are_lost(callback: Callable[[], object]) -> None:
    """Calls a function for each line of this process that is lost from now on."""
    _on_lost[:] = [callback]


class LineWriter:
    """Writes lines to a descriptor, or to a stream that has none."""

    def __init__(self, output: int | TextIO) -> None:
        """Writes to a descriptor, or to the descriptor of a stream; both stay the caller's."""
        self.lost = 0  # lines since the last one that was written
        self._stream: TextIO | None = None
        self._fd = -1
        self._ends_within_line = False
        if isinstance(output, int):
            self._fd = output
            return
        try:
            self._fd = output.fileno()
        except (OSError, ValueError):  # a test's stream
            self._stream = output

    def write(self, line: str) -> bool:
        """Writes a line; returns False if it was lost, wholly or in part."""
        try:
            self._write(line)
        except (OSError, ValueError):
            self.lost += 1
            for callback in _on_lost:
                callback()
            return False
        return True

    def _write(self, line: str) -> None:
        if self._stream is not None:
            self._stream.write(line + "\n")
            self._stream.flush()
            return
        start = "\n" if self._ends_within_line else ""
        data = f"{start}{line}\n".encode("utf-8", "backslashreplace")
        patience = 0.0 if self.lost else _PATIENCE_SECONDS
        for position in range(0, len(data), _PIECE_BYTES):
            self._write_piece(data[position : position + _PIECE_BYTES], patience)
        self._ends_within_line = False

    def _write_piece(self, piece: bytes, patience: float) -> None:
        while piece:
            if not self._is_writable(patience):
                raise TimeoutError("nobody reads the log")
            written = os.write(self._fd, piece)
            self._ends_within_line = True
            piece = piece[written:]

    def _is_writable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))


class LineHandler(logging.Handler):
    """A handler of Python's logging that writes with a `LineWriter`."""

    def __init__(self, output: int | TextIO) -> None:
        """Logs to a descriptor or stream."""
        super().__init__()
        self._writer = LineWriter(output)

    def emit(self, record: logging.LogRecord) -> None:
        """Formats and writes a record."""
        try:
            line = self.format(record)
        except Exception as error:  # of a library: a wrong number of arguments
            line = self.format(
                _record(f"a log record cannot be formatted: {error!r}: {record.msg!r}")
            )
        self._write(line)

    def write_line(self, line: str) -> None:
        """Writes a line that is formatted already; any thread."""
        self.acquire()
        try:
            self._write(line)
        finally:
            self.release()

    def set_output(self, output: int | TextIO) -> None:
        """Writes to another descriptor or stream from now on."""
        self.acquire()
        try:
            self._writer = LineWriter(output)
        finally:
            self.release()

    def _write(self, line: str) -> None:
        lost = self._writer.lost
        if self._writer.write(line) and lost:
            self._writer.lost = 0
            self._writer.write(self.format(_record(f"{lost} log lines could not be written")))


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, "", 0, message, None, None)
