"""The errors of a request, by the stage that raises them.

    client ---> admit ---> slot ---> decode ---> queue ---> engine ---> result
                  |          |          |          |           |
                  |          |          |          |           +- InferenceFailed
                  |          |          |          +- DeadlineExceeded (any stage up to here)
                  |          |          +- InvalidImage, UnsupportedImage, ImageTooLarge
                  |          +- Overloaded
                  +- InvalidOptions, NotReady, ShuttingDown

Each adapter maps every class to a status in one table; tests check the tables with
`all_error_types`. Any other exception is a bug: it is logged with its traceback, and the client
gets only a generic error.
"""

from __future__ import annotations

import reprlib

from model.images.errors import DetectionError, ImageTooLarge, InvalidImage, UnsupportedImage

__all__ = [
    "DeadlineExceeded",
    "DetectionError",
    "ImageTooLarge",
    "InferenceFailed",
    "InvalidImage",
    "InvalidOptions",
    "NotReady",
    "Overloaded",
    "ShuttingDown",
    "UnsupportedImage",
    "all_error_types",
    "short_repr",
]

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


class InvalidOptions(DetectionError):
    """An option has an invalid value, or one that this model does not have."""

    code = "invalid_options"


class Overloaded(DetectionError):
    """No slot is free, or the result would miss its deadline."""

    code = "overloaded"


class DeadlineExceeded(DetectionError):
    """The deadline passed before the result was ready."""

    code = "deadline_exceeded"


class ShuttingDown(DetectionError):
    """The service is draining and accepts no new requests."""

    code = "shutting_down"


class NotReady(DetectionError):
    """No engine is ready: they are loading or being replaced."""

    code = "not_ready"


class InferenceFailed(DetectionError):
    """The engine failed on this image, even in a batch of its own."""

    code = "inference_failed"


def all_error_types() -> tuple[type[DetectionError], ...]:
    """Returns every concrete error."""
    return tuple(DetectionError.__subclasses__())


def short_repr(value: object) -> str:
    """A value of the client for an error message, cut to a bounded length."""
    return _repr.repr(value)
