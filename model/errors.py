"""Errors of running a network; without torch."""

from __future__ import annotations


class DeviceError(RuntimeError):
    """A device that is not there, or a precision that it does not have; the message names it."""
