"""Answers for people: a table on stdout, and photos with their boxes drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.images.decode import ImageLimits
from service.cli.inputs import STDIN, Photo
from service.core.encoding import FileResult, label_name
from service.images.drawing import render_detections
from service.types import DetectResult

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}


class PictureSaver:
    """Writes photos with their boxes into a folder, none over another.

    Args:
        folder: made where absent.
        limits: of a photo, as the detection has them.
    """

    def __init__(self, folder: Path, limits: ImageLimits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._limits = limits
        self._taken: set[str] = set()

    def save(self, photo: Photo, data: bytes, result: DetectResult) -> None:
        """Draws an answer on its photo and writes the picture under the photo's name."""
        drawn = render_detections(data, result.detections, result.label_names, self._limits)
        stem = "stdin" if photo.name == STDIN else Path(photo.name).stem
        name = stem + _SUFFIXES[drawn.media_type]
        number = 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}{_SUFFIXES[drawn.media_type]}"
        self._taken.add(name)
        (self._folder / name).write_bytes(drawn.data)


def print_table(outcomes: Sequence[FileResult]) -> None:
    """Prints what was found in each photo."""
    console = Console(highlight=False)
    for outcome in outcomes:
        if outcome.result is None:
            problem = outcome.error.detail if outcome.error else "no answer"
            console.print(Text(f"{outcome.name}: {problem}", style="red"), soft_wrap=True)
        else:
            _print_result(console, outcome.name or "", outcome.result)


def _print_result(console: Console, name: str, result: DetectResult) -> None:
    count = len(result.detections.scores)
    heading = Text(name, style="bold")
    size = f"{result.width} x {result.height}"
    heading.append(f"  {size}, {count} found, {result.timings.total:.0f} ms", style="dim")
    console.print(heading, soft_wrap=True)
    if not count:
        return
    table = Table("label", "score", "xmin", "ymin", "xmax", "ymax", box=None, padding=(0, 2))
    for column in table.columns[1:]:
        column.justify = "right"
    found = result.detections
    for class_id, score, box in zip(found.labels, found.scores, found.boxes_xyxy, strict=True):
        corners = (f"{value:.1f}" for value in box.tolist())
        table.add_row(label_name(result.label_names, int(class_id)), f"{score:.2f}", *corners)
    console.print(table)
