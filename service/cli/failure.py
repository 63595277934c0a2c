"""Converts exceptions of commands to one-line error messages."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from model.data.errors import DataError, OutputError
from model.errors import DeviceError
from model.weights.info import CheckpointError
from service.errors import DetectionError

_REFUSED = 2
# Of packages that commands need; all others belong to the extra `train`.
_EXTRAS = {
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "ray": "ray",
    "tensorboard": "tensorboard",
}
DEBUG_VARIABLE = "LITE_DETR_DEBUG"


class CommandFailed(Exception):
    """A command failed; the text is the error message."""


_OWN_ERRORS = (CommandFailed, CheckpointError, DataError, DetectionError, DeviceError, OutputError)


@contextlib.contextmanager
def writing_to_stdout() -> Iterator[None]:
    """Names stdout in the error message if it cannot be written to, for example on a full disk.

    Raises:
        CommandFailed: instead of an OSError; a closed pipe stays a BrokenPipeError.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise CommandFailed(f"cannot write to stdout: {error.strerror or error}") from error


def exit_status(error: Exception) -> int:
    """Returns 2 for data or an output that the command refuses, as for arguments; otherwise 1."""
    return _REFUSED if isinstance(error, DataError | OutputError) else 1


def enable_debugging() -> None:
    """Turns tracebacks on for this process and its child processes."""
    os.environ[DEBUG_VARIABLE] = "1"


def is_debugging() -> bool:
    """Whether tracebacks are turned on."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def describe_failure(error: Exception) -> str:
    """Returns the error message for an exception.

    The text of our own errors is used as it is. Other errors get their type, and a hint at --debug.
    """
    if isinstance(error, _OWN_ERRORS):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get(error.name or "", "train")
        target = "ray" if extra == "ray" else "setup-full"
        return (
            f"this command needs {error.name}, which is not installed: "
            f"pip install 'lite-detr-service[{extra}]' (in a checkout: make {target})"
        )
    if isinstance(error, OSError) and error.strerror:
        prefix = f"{error.filename}: " if error.filename else ""
        return f"{prefix}{error.strerror}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} (use --debug for the traceback)"
