"""The parameters of a request: detection options, and the protocol's own.

Numbers may also be text, because some clients cannot send every type (tritonclient sends no floats
over gRPC).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.core.selection import check_labels_length
from service.core.tiling.options import overlap_error, parse_tile
from service.errors import InvalidOptions, short_repr
from service.transport.option_values import number_of, whole_of
from service.types import DetectOptions, Priority

_US_PER_S = 1_000_000
_PRIORITIES = {0: None, 1: Priority.HIGH, 2: Priority.NORMAL}  # 0: the default


@dataclass(frozen=True)
class InferParameters:
    """The parameters of one request."""

    options: DetectOptions = field(default_factory=DetectOptions)
    priority: Priority | None = None  # None: the transport's
    timeout_s: float | None = None  # None: the service's
    binary_output: bool = False  # of outputs without their own setting
    mark_final: bool = False  # responses on a stream are marked as final


def read_parameters(values: Mapping[str, object]) -> InferParameters:
    """Reads a request's parameters; unknown ones are ignored, as in Triton and KServe.

    Raises:
        InvalidOptions: for an invalid value; the message names the parameter.
    """
    options = DetectOptions(
        threshold=_number(values, "threshold"),
        max_detections=_whole(values, "max_detections", 1),
        labels=_labels(values.get("labels")),
        tiles=parse_tile(values.get("tile"), _overlap(values)),
    )
    return InferParameters(
        options=options,
        priority=_priority(_whole(values, "priority")),
        timeout_s=_timeout_s(_whole(values, "timeout")),
        binary_output=read_flag(values, "binary_data_output"),
        mark_final=read_flag(values, "triton_enable_empty_final_response"),
    )


def read_flag(values: Mapping[str, object], name: str, default: bool = False) -> bool:
    """Reads a boolean parameter.

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
    number = number_of(value)
    if number is None:
        raise InvalidOptions(f"{name} is {short_repr(value)}; it takes a number")
    return number


def _overlap(values: Mapping[str, object]) -> float | None:
    value = values.get("overlap")
    if value is None:
        return None
    overlap = number_of(value)
    if overlap is None:
        raise InvalidOptions(overlap_error(value))
    return overlap


def _whole(values: Mapping[str, object], name: str, minimum: int = 0) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    number = whole_of(value)
    if number is None:  # the core checks the range, which depends on the model
        raise InvalidOptions(
            f"{name} is {short_repr(value)}; it takes a whole number from {minimum} up"
        )
    return number


def _labels(value: object) -> tuple[str, ...] | None:
    """Text, or an array of texts, which only JSON has."""
    if value is None or value == []:
        return None
    given = value if isinstance(value, list) else [value]
    texts = [text for text in given if isinstance(text, str)]
    check_labels_length(texts)
    names = (name.strip() for text in texts for name in text.split(","))
    if len(texts) < len(given) or not all(names):
        raise InvalidOptions(
            f"labels is {short_repr(value)}; it takes class names separated by commas; leave it "
            "out for all classes"
        )
    return tuple(dict.fromkeys(texts))


def _timeout_s(microseconds: int | None) -> float | None:
    """As in Triton, 0 means no timeout of the request itself."""
    return microseconds / _US_PER_S if microseconds else None


def _priority(level: int | None) -> Priority | None:
    if level is None:
        return None
    if level not in _PRIORITIES:
        raise InvalidOptions(f"priority is {level}; it takes 1 (high), 2 (normal) or 0 (default)")
    return _PRIORITIES[level]
