"""Results for people: a table on stdout, and images with boxes drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.images.decode import ImageLimits
from service.cli.inputs import STDIN, ImageFile
from service.core.encoding import FileResult, label_name
from service.images.drawing import render_detections
from service.types import DetectResult

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}


class ImageSaver:
    """Writes images with boxes drawn into a folder, each under a name of its own.

    Args:
        folder: created if absent.
        limits: of an image file, as for detection.
    """

    def __init__(self, folder: Path, limits: ImageLimits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._limits = limits
        self._used_names: set[str] = set()

    def save(self, file: ImageFile, data: bytes, result: DetectResult) -> None:
        """Draws a result on its image and writes it under the name of the file."""
        drawn = render_detections(data, result.detections, result.label_names, self._limits)
        stem = "stdin" if file.name == STDIN else Path(file.name).stem
        name = stem + _SUFFIXES[drawn.media_type]
        number = 1
        while name in self._used_names:
            number += 1
            name = f"{stem}-{number}{_SUFFIXES[drawn.media_type]}"
        self._used_names.add(name)
        (self._folder / name).write_bytes(drawn.data)


def print_table(results: Sequence[FileResult]) -> None:
    """Prints the detections of each file, or its error."""
    console = Console(highlight=False)
    for file in results:
        if file.result is None:
            problem = file.error.detail if file.error else "no result"
            console.print(Text(f"{file.name}: {problem}", style="red"), soft_wrap=True)
        else:
            _print_result(console, file.name or "", file.result)


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
