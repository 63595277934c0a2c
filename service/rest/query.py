"""The options of POST /detect: query parameters or plain form fields -> `DetectQuery`.

FastAPI does not read them: they may also be fields of a form, whose body is parsed as it arrives,
and one reader serves both. Reading the query and headers with FastAPI as well would take over 3 %
of the edge's CPU time for a request; a by-pass of FastAPI's router would save about 1 %
(benchmarks/results/serving/routing.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import QueryParams

from service.core.formats import OUTPUT_FORMATS, OutputFormat
from service.errors import InvalidOptions
from service.types import DetectOptions

_MAX_DIGITS = 9
_CACHED_QUERIES = 256


@dataclass(frozen=True)
class DetectQuery:
    """The options of one request."""

    options: DetectOptions
    output_format: OutputFormat | None  # None: not given


PARAMETERS = ("threshold", "max_detections", "labels", "format")


@lru_cache(maxsize=_CACHED_QUERIES)
def parse_query_string(query_string: bytes) -> DetectQuery:
    """Reads the options of a URL; cached, since most clients repeat the same ones.

    Args:
        query_string: percent-encoded.

    Raises:
        InvalidOptions: as `parse_query` does.
    """
    return parse_query(split_query_string(query_string))


def split_query_string(query_string: bytes) -> list[tuple[str, str]]:
    """Names and values of a query string, in the order given."""
    return QueryParams(query_string).multi_items()


def parse_query(parameters: Iterable[tuple[str, str]]) -> DetectQuery:
    """Reads the options.

    Args:
        parameters: names and values in the order given; only `labels` may be repeated.

    Returns:
        The options; those not given are None, which stands for the model's defaults.

    Raises:
        InvalidOptions: for an unknown, repeated or invalid parameter; the message names it.
    """
    given: dict[str, list[str]] = {}
    for name, value in parameters:
        if name not in PARAMETERS:
            raise InvalidOptions(f"unknown parameter {name!r}; known are {', '.join(PARAMETERS)}")
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name != "labels":
            raise InvalidOptions(f"{name} is given {len(values)} times")
    options = DetectOptions(
        threshold=_threshold(given.get("threshold")),
        max_detections=_max_detections(given.get("max_detections")),
        labels=_labels(given.get("labels")),
    )
    return DetectQuery(options, _output_format(given.get("format")))


def _threshold(values: list[str] | None) -> float | None:
    if values is None:
        return None
    threshold = _number(values[0])
    if threshold is None or not 0 <= threshold <= 1:
        raise InvalidOptions(f"threshold is {values[0]!r}; it takes a number from 0 to 1")
    return threshold


def _max_detections(values: list[str] | None) -> int | None:
    if values is None:
        return None
    text = values[0].strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) >= 1):
        raise InvalidOptions(f"max_detections is {values[0]!r}; it takes a whole number from 1 up")
    return int(text)


def _labels(values: list[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not all(name.strip() for value in values for name in value.split(",")):
        raise InvalidOptions(
            "labels has an empty name; give class names separated by commas, "
            "or leave it out for all classes"
        )
    return tuple(dict.fromkeys(values))


def _output_format(values: list[str] | None) -> OutputFormat | None:
    if values is None:
        return None
    output_format = OUTPUT_FORMATS.get(values[0])
    if output_format is None:
        known = ", ".join(OUTPUT_FORMATS)
        raise InvalidOptions(f"format is {values[0]!r}; it takes one of {known}")
    return output_format


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
