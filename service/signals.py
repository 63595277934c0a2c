"""The signals of `serve`, also while it starts: SIGTERM and SIGINT stop it, SIGHUP reloads files.

First `handle_while_starting`, then `stop_on_signals` and `Hangups` in the event loop. This module
imports little, so that the first of them runs early.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

_EXIT_SIGNALLED = 128  # plus the signal's number, as shells do

_log = logging.getLogger(__name__)


def handle_while_starting() -> None:
    """Handles signals until the event loop does; nothing has been started or read by then.

    By default SIGHUP would end the process, and the first process of a container would not get
    SIGTERM.
    """
    signal.signal(signal.SIGHUP, _ignore)
    signal.signal(signal.SIGTERM, _exit_before_the_start)
    signal.signal(signal.SIGINT, _exit_at_once)


def stop_on_signals(announce: Callable[[str], None]) -> asyncio.Event:
    """Returns an event that the first SIGTERM or SIGINT sets; the second exits at once.

    Args:
        announce: called with a line about the first one.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_first(number: signal.Signals) -> None:
        stop.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, _exit_at_once)
        announce(f"{number.name}: finishing requests in flight; a second signal exits at once")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_first, number)
    return stop


class Hangups:
    """Calls functions after each SIGHUP, from `begin` on; one that came before counts then."""

    def __init__(self, stop: asyncio.Event) -> None:
        """Handles SIGHUP from now on.

        Args:
            stop: once it is set, SIGHUP has no effect.
        """
        self._stop = stop
        self._reloads: tuple[Callable[[], None], ...] = ()
        self._missed = False
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_signal)

    def begin(self, *reloads: Callable[[], None]) -> None:
        """Sets the functions; an error of one is logged and does not affect the others."""
        self._reloads = reloads
        if self._missed:
            self._on_signal()

    def _on_signal(self) -> None:
        self._missed = True
        if self._stop.is_set():
            return
        for reload in self._reloads:
            try:
                reload()
            except Exception:
                _log.exception("unexpected error during a reload")


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Does nothing. Unlike SIG_IGN it is not inherited by other programs."""


def _exit_before_the_start(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _exit_at_once(number: int, _frame: FrameType | None) -> None:
    """Exits without cleaning up; engines exit when the doorbell closes."""
    os._exit(_EXIT_SIGNALLED + number)
