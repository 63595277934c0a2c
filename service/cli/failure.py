"""How a command's failure reads: one line for a person, whatever was raised."""

from __future__ import annotations

import os

from model.weights.info import CheckpointError
from service.errors import DetectionError

DEBUG_VARIABLE = "LITE_DETR_DEBUG"


class CommandFailed(Exception):
    """A failure that the command has put into words."""


def set_debugging() -> None:
    """Turns tracebacks on, for this process and those it starts."""
    os.environ[DEBUG_VARIABLE] = "1"


def debugging() -> bool:
    """Whether the user wants to see tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def describe_failure(error: Exception) -> str:
    """The line that the user sees.

    Errors made for people are shown as they are; others with their type, because a bare
    "list index out of range" helps nobody, and with the way to see more.
    """
    from model.training.records import DataError  # noqa: PLC0415 - loads numpy

    if isinstance(error, CommandFailed | CheckpointError | DetectionError | DataError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return (
            f"this command needs {error.name}, which is not installed: "
            "pip install 'lite-detr-service[train]' (in a checkout: make setup-full)"
        )
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} (--debug shows where)"
