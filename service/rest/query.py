"""The options of POST /detect: query parameters or plain form fields -> `DetectQuery`.

FastAPI does not read them: they may also be fields of a form, whose body is parsed as it arrives,
and one reader serves both. Reading the query and headers with FastAPI as well would take over 3 %
of the edge's CPU time for a request; a by-pass of FastAPI's router would save about 1 %
(benchmarks/results/serving/routing.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import QueryParams

from service.core.formats import OUTPUT_FORMATS, OutputFormat
from service.core.selection import check_labels_length
from service.core.tiling.options import overlap_error, parse_tile
from service.errors import InvalidOptions, short_repr
from service.transport.option_values import number_of, whole_of
from service.types import DetectOptions, TileOptions

_CACHED_QUERIES = 256


@dataclass(frozen=True)
class DetectQuery:
    """The options of one request."""

    options: DetectOptions
    output_format: OutputFormat | None  # None: not given


PARAMETERS = ("threshold", "max_detections", "labels", "format", "detection", "tile", "overlap")


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


def parse_query(parameters: Iterable[tuple[str, object]]) -> DetectQuery:
    """Reads the options.

    Args:
        parameters: names and values in the order given; only `labels` may be repeated.

    Returns:
        The options; those not given are None, which stands for the model's defaults.

    Raises:
        InvalidOptions: for an unknown, repeated or invalid parameter; the message names it.
    """
    given: dict[str, list[object]] = {}
    for name, value in parameters:
        if name not in PARAMETERS:
            raise InvalidOptions(
                f"unknown parameter {short_repr(name)}; known are {', '.join(PARAMETERS)}"
            )
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name != "labels":
            raise InvalidOptions(f"{name} is given {len(values)} times")
    output_format = _output_format(given.get("format"))
    options = DetectOptions(
        threshold=_threshold(given.get("threshold")),
        max_detections=_max_detections(given.get("max_detections")),
        labels=_labels(given.get("labels")),
        explain=_detection(given.get("detection"), output_format),
        tiles=_tiles(given.get("tile"), given.get("overlap")),
    )
    return DetectQuery(options, output_format)


def _threshold(values: list[object] | None) -> float | None:
    if values is None:
        return None
    threshold = number_of(values[0])
    if threshold is None or not 0 <= threshold <= 1:
        raise InvalidOptions(f"threshold is {short_repr(values[0])}; it takes a number from 0 to 1")
    return threshold


def _max_detections(values: list[object] | None) -> int | None:
    if values is None:
        return None
    number = whole_of(values[0])
    if not number:
        value = short_repr(values[0])
        raise InvalidOptions(f"max_detections is {value}; it takes a whole number from 1 up")
    return number


def _detection(values: list[object] | None, output_format: OutputFormat | None) -> int | None:
    explains = output_format is not None and output_format.explains
    if values is None:
        return 1 if explains else None
    if not explains:
        raise InvalidOptions("detection is an option of format=explain only")
    number = whole_of(values[0])
    if not number:
        value = short_repr(values[0])
        raise InvalidOptions(f"detection is {value}; it takes a whole number from 1 up")
    return number


def _tiles(tile: list[object] | None, overlap: list[object] | None) -> TileOptions | None:
    share = None
    if overlap is not None:
        share = number_of(overlap[0])
        if share is None:
            raise InvalidOptions(overlap_error(overlap[0]))
    return parse_tile(None if tile is None else tile[0], share)


def _labels(values: list[object] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        other = next(value for value in values if not isinstance(value, str))
        raise InvalidOptions(f"labels has {short_repr(other)}; it takes class names")
    check_labels_length(texts)
    if not all(name.strip() for text in texts for name in text.split(",")):
        raise InvalidOptions(
            "labels has an empty name; give class names separated by commas, "
            "or leave it out for all classes"
        )
    return tuple(dict.fromkeys(texts))


def _output_format(values: list[object] | None) -> OutputFormat | None:
    if values is None:
        return None
    name = values[0]
    output_format = OUTPUT_FORMATS.get(name) if isinstance(name, str) else None
    if output_format is None:
        known = ", ".join(OUTPUT_FORMATS)
        raise InvalidOptions(f"format is {short_repr(name)}; it takes one of {known}")
    return output_format
