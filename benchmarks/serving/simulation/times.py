"""Times and sizes of a simulated fleet: engines by shape and batch size, edge, balancer, images.

Measured figures are read from benchmarks/results; others are given by the user.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from benchmarks.report import RESULTS
from model.config import VARIANTS
from model.geometry import padded_size, resized_size

Bucket = tuple[int, int]  # padded (height, width), pixels

MODEL = VARIANTS["lite-dino-efficientnet-lite0"]  # the default model: its resize rule
_MEASURED = {
    "default": "default model on two CPU cores: benchmarks/results/serving/alone.json",
    "default-fp32": "its network on two CPU cores: benchmarks/results/model/cpu.json",
    "default-bf16": "the same in bfloat16",
    "r50-fp32": "R50 at 800 x 1066 on two CPU cores: benchmarks/results/model/cpu.json",
    "r50-bf16": "the same in bfloat16",
}
_R50_BUCKET = (832, 1088)
_KEY_VALUE = 2


@dataclass(frozen=True)
class Shape:
    """Images of one size in the traffic."""

    bucket: Bucket
    image_pixels: int  # resized, without padding
    weight: float

    @classmethod
    def of(cls, width: int, height: int, weight: float) -> Self:
        """The shape of images of a size, by the resize rule of the default model."""
        size = resized_size(height, width, MODEL.shortest_side, MODEL.longest_side)
        return cls(padded_size(*size, MODEL.bucket_stride), size[0] * size[1], weight)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Reads WIDTHxHEIGHT:WEIGHT,..., for example 640x480:3,1920x1080:1.

    Raises:
        ValueError: for anything else.
    """
    shapes = []
    for part in text.split(","):
        size, _, weight = part.strip().partition(":")
        width, separator, height = size.partition("x")
        try:
            shape = Shape.of(int(width), int(height), float(weight or 1))
        except ValueError:
            separator = ""
        if not separator or not 0 < shape.weight < float("inf"):
            raise ValueError(f"{part!r} is not WIDTHxHEIGHT or WIDTHxHEIGHT:WEIGHT")
        shapes.append(shape)
    return tuple(shapes)


class EngineTimes:
    """Seconds of a batch by shape bucket and number of images.

    Between the given batch sizes, and beyond them, the time is linear in the number of images; that
    of other buckets is in proportion to their padded pixels.
    """

    def __init__(self, source: str, table: Mapping[Bucket, Mapping[int, float]]) -> None:
        """Creates the table.

        Args:
            source: where the figures come from, for the report.
            table: by bucket: seconds by number of images.

        Raises:
            ValueError: without any figure, or for one that is not positive.
        """
        self.source = source
        self._table = {bucket: sorted(times.items()) for bucket, times in table.items() if times}
        figures = [pair for times in self._table.values() for pair in times]
        if not figures or not all(
            images >= 1 and 0 < seconds < float("inf") for images, seconds in figures
        ):
            raise ValueError("engine times must be positive, for at least one shape")
        self._known: dict[tuple[Bucket, int], float] = {}

    def seconds(self, bucket: Bucket, images: int) -> float:
        """Run time of a batch."""
        found = self._known.get((bucket, images))
        if found is None:
            found = self._known[bucket, images] = self._look_up(bucket, images)
        return found

    def capacity(self, shapes: Sequence[Shape], batch_size: int) -> float:
        """Images per second of one engine in full batches of one shape each."""
        weight = sum(shape.weight for shape in shapes)
        seconds = sum(
            shape.weight / weight * self.seconds(shape.bucket, batch_size) / batch_size
            for shape in shapes
        )
        return 1 / seconds

    def _look_up(self, bucket: Bucket, images: int) -> float:
        pixels = bucket[0] * bucket[1]
        nearest = min(self._table, key=lambda one: (abs(one[0] * one[1] - pixels), one))
        scale = pixels / (nearest[0] * nearest[1])
        return scale * _interpolate(self._table[nearest], images)


def _interpolate(pairs: Sequence[tuple[int, float]], images: int) -> float:
    """The line through the two nearest batch sizes; one figure is taken in proportion."""
    if len(pairs) == 1:
        return pairs[0][1] / pairs[0][0] * images
    index = min(max(bisect_left(pairs, (images,)), 1), len(pairs) - 1)
    (low, first), (high, last) = pairs[index - 1], pairs[index]
    return max(first / low * 0.01, first + (last - first) * (images - low) / (high - low))


def engine_times(text: str) -> EngineTimes:
    """Reads the option --engine: a measured engine, BASE+PER_IMAGE in milliseconds, or a file.

    A file is JSON: {"384x512": {"1": 12.5, "8": 60.0}, ...}: HEIGHTxWIDTH, padded; the number of
    images; milliseconds.

    Raises:
        ValueError: for anything else.
    """
    if text in _MEASURED:
        return _measured(text)
    base, plus, per_image = text.partition("+")
    if plus:
        try:
            first, more = float(base) / 1000, float(per_image) / 1000
        except ValueError:
            raise ValueError(f"{text!r} is not BASE+PER_IMAGE in milliseconds") from None
        bucket = Shape.of(640, 480, 1).bucket
        source = f"given, not measured: {text} ms at {bucket[0]} x {bucket[1]}"
        return EngineTimes(source, {bucket: {1: first + more, 2: first + 2 * more}})
    if text.endswith(".json"):
        try:
            return EngineTimes(f"the file {Path(text).name}", _read_table(json.loads(_read(text))))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{text}: {error}") from None
    names = ", ".join(_MEASURED)
    raise ValueError(f"{text!r} is none of {names}, BASE+PER_IMAGE in ms, or a .json file")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from None


def _read_table(document: Mapping[str, Mapping[str, float]]) -> dict[Bucket, dict[int, float]]:
    table = {}
    for name, times in document.items():
        sides = [int(side) for side in name.split("x")]
        if len(sides) != _KEY_VALUE or min(sides) < 1:
            raise ValueError(f"{name!r} is not HEIGHTxWIDTH")
        table[sides[0], sides[1]] = {int(n): float(ms) / 1000 for n, ms in times.items()}
    return table


def _measured(name: str) -> EngineTimes:
    source = _MEASURED[name]
    if name == "default":
        rounds = _result("serving/alone.json")["default_model"]["rounds"]
        rate = median(one["engine_throughput"] for one in rounds)
        return EngineTimes(source, {Shape.of(640, 480, 1).bucket: {8: 8 / rate}})
    model, side = name.split("-")
    rows = _result("model/cpu.json")["rows"]
    (row,) = (one for one in rows if (one["model"], one["side"]) == (model, side))
    bucket = _R50_BUCKET if model == "r50" else Shape.of(4000, 3000, 1).bucket
    return EngineTimes(source, {bucket: {1: row["wall_ms"] / 1000}})


@dataclass(frozen=True)
class EdgeTimes:
    """CPU seconds per request outside the engines.

    Each edge process has one core, each decoder and each thread of the balancer another one.
    """

    receive: float  # until a request is admitted or refused
    respond: float  # after the result
    decode: float  # of one image, in a decoder
    balance: float  # in one thread of the balancer

    @classmethod
    def measured(cls) -> Self:
        """From benchmarks/results/serving/edge-limit.json."""
        loads = _result("serving/edge-limit.json")["loads"]
        direct, refused = loads["direct"], loads["refused"]
        return cls(
            receive=refused["edge_cpu_ms"] / 1000,
            respond=max(0.0, direct["edge_cpu_ms"] - refused["edge_cpu_ms"]) / 1000,
            decode=direct["other_cpu_ms"] / 1000,
            balance=loads.get("through HAProxy", {}).get("proxy_cpu_ms", 0.0) / 1000,
        )


FREE_EDGE = EdgeTimes(0.0, 0.0, 0.0, 0.0)  # takes no time


def _result(path: str) -> Any:
    return json.loads((RESULTS / path).read_text(encoding="utf-8"))
