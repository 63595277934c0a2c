"""A request's parameters: options of the detection, and the protocol's own.

Clients differ in the types that they can send (tritonclient sends no floats over gRPC), so that a
number may also come as text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.errors import InvalidOptions
from service.oip.errors import short_repr
from service.types import DetectOptions, Priority

_MOST_DIGITS = 18
_MOST_TEXT = 10_000  # characters
_LONGEST_NUMBER = 40  # characters
_US_PER_S = 1_000_000
_PRIORITIES = {0: None, 1: Priority.HIGH, 2: Priority.NORMAL}  # 0: the default
PARAMETERS = (
    "threshold",
    "max_detections",
    "labels",
    "timeout",
    "priority",
    "binary_data_output",
    "triton_enable_empty_final_response",
)


@dataclass(frozen=True)
class InferParameters:
    """What a request's parameters say."""

    options: DetectOptions = field(default_factory=DetectOptions)
    priority: Priority | None = None  # None: as the transport says
    timeout_s: float | None = None  # None: the service's own
    binary_output: bool = False  # of outputs that do not say it themselves
    mark_final: bool = False  # a stream's answers say that they are whole


def read_parameters(values: Mapping[str, object]) -> InferParameters:
    """Reads a request's parameters.

    Raises:
        InvalidOptions: for an unknown or impossible one; the message names it.
    """
    for name in values:
        if name not in PARAMETERS:
            known = ", ".join(PARAMETERS)
            raise InvalidOptions(f"unknown parameter {short_repr(name)}; known are {known}")
    options = DetectOptions(
        threshold=_number(values, "threshold"),
        max_detections=_whole(values, "max_detections"),
        labels=_labels(values.get("labels")),
    )
    return InferParameters(
        options=options,
        priority=_priority(_whole(values, "priority")),
        timeout_s=_timeout_s(_whole(values, "timeout")),
        binary_output=read_flag(values, "binary_data_output"),
        mark_final=read_flag(values, "triton_enable_empty_final_response"),
    )


def read_flag(values: Mapping[str, object], name: str, default: bool = False) -> bool:
    """A parameter that is true or false.

    Raises:
        InvalidOptions: for anything else.
    """
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidOptions(f"{name} is {short_repr(value)}; it takes true or false")
    return value


def _number(values: Mapping[str, object], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    number = math.nan
    too_long = isinstance(value, str) and len(value) > _LONGEST_NUMBER
    if isinstance(value, int | float | str) and not isinstance(value, bool) and not too_long:
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise InvalidOptions(f"{name} is {short_repr(value)}; it takes a number")
    return number


def _whole(values: Mapping[str, object], name: str) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < _MOST_DIGITS:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidOptions(f"{name} is {short_repr(value)}; it takes a whole number from 0 up")
    return value


def _labels(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    fits = isinstance(value, str) and len(value) <= _MOST_TEXT
    names = [name.strip() for name in str(value).split(",")] if fits else [""]
    if not all(names):
        raise InvalidOptions(
            f"labels is {short_repr(value)}; it takes class names separated by commas; leave it "
            "out for all classes"
        )
    return tuple(dict.fromkeys(names))


def _timeout_s(microseconds: int | None) -> float | None:
    """Triton's meaning: 0 asks for no timeout of one's own."""
    return microseconds / _US_PER_S if microseconds else None


def _priority(level: int | None) -> Priority | None:
    if level is None:
        return None
    if level not in _PRIORITIES:
        raise InvalidOptions(f"priority is {level}; it takes 1 (high), 2 (normal) or 0 (default)")
    return _PRIORITIES[level]
