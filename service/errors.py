"""What can go wrong on the way of a request: one error for each arrow.

    client ---> admit ---> slot ---> decode ---> queue ---> engine ---> answer
                  |          |          |          |           |
                  |          |          |          |           +- InferenceFailed
                  |          |          |          +- DeadlineExceeded (any stage up to here)
                  |          |          +- InvalidImage, UnsupportedImage, ImageTooLarge
                  |          +- Overloaded
                  +- InvalidOptions, NotReady, ShuttingDown

An adapter maps each class to a status by one table; `all_error_types` lets a test prove that the
table is whole. Anything that is not a `DetectionError` is a bug: logged whole, answered bare.
"""

from __future__ import annotations

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
]


class InvalidOptions(DetectionError):
    """A threshold, count or label that this model does not have."""

    code = "invalid_options"


class Overloaded(DetectionError):
    """No slot is free: more requests are on their way than memory is set aside for."""

    code = "overloaded"


class DeadlineExceeded(DetectionError):
    """The request's time ran out before its answer was there."""

    code = "deadline_exceeded"


class ShuttingDown(DetectionError):
    """The service drains and takes nothing new."""

    code = "shutting_down"


class NotReady(DetectionError):
    """No engine is ready: still loading, or being replaced."""

    code = "not_ready"


class InferenceFailed(DetectionError):
    """The engine failed on this one image, also when it ran alone."""

    code = "inference_failed"


def all_error_types() -> tuple[type[DetectionError], ...]:
    """Every concrete error, so that adapters can prove their status tables whole."""
    return tuple(DetectionError.__subclasses__())
