"""Results for people: a table on stdout, and images with boxes drawn."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.data.errors import OutputError
from model.data.output_files import FileSet, write_output
from model.images.decode import ImageLimits
from service.cli.failure import describe_failure
from service.cli.inputs import STDIN, ImageFile
from service.core.encoding import FileResult, label_name
from service.errors import DetectionError
from service.images.drawing import RenderedImage, render_detections
from service.types import DetectResult

_LOSSLESS_SUFFIXES = frozenset({".png", ".apng", ".bmp", ".tif", ".tiff", ".gif"})  # drawn as PNG
_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}


class ImageSaver:
    """Writes images with boxes drawn into a folder, each under a name of its own.

    Args:
        folder: created if absent.
        files: all images to detect in.
        limits: of an image file, as for detection.
        report: called with a line about each image that cannot be saved.
        overwrite: replaces images that exist; never one of the inputs.
        other_inputs: files of the run besides the images.

    Attributes:
        num_failed: images that could not be saved.

    Raises:
        OutputError: if images of these names exist and may not be replaced.
    """

    def __init__(  # noqa: PLR0913 - options, by keyword
        self,
        folder: Path,
        files: Sequence[ImageFile],
        limits: ImageLimits,
        *,
        report: Callable[[str], None],
        overwrite: bool,
        other_inputs: Iterable[Path] = (),
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._report = report
        self._overwrite = overwrite
        self.num_failed = 0
        self._used_names: set[str] = set()
        self._inputs = FileSet([*(_path(file) for file in files), *other_inputs])
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise OutputError(f"--save takes a folder, and {folder} is a file")
        self._check_names(files)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"--save: cannot create the folder {folder}: {reason}") from error

    def _check_names(self, files: Sequence[ImageFile]) -> None:
        """Checks which images would be replaced, by the formats that the file names suggest."""
        names: dict[str, None] = {}
        for file in files:
            lossless = Path(file.name).suffix.lower() in _LOSSLESS_SUFFIXES
            suffix = _SUFFIXES["image/png" if lossless else "image/jpeg"]
            numbered = (_name(file, number, suffix) for number in itertools.count(1))
            names[next(name for name in numbered if name not in names)] = None
        inputs = [name for name in names if self._folder / name in self._inputs]
        if inputs:
            raise OutputError(
                f"{self._folder / inputs[0]} is an input of this command and is not replaced by a "
                "drawing; choose another folder"
            )
        present = [name for name in names if os.path.exists(self._folder / name)]
        if present and not self._overwrite:
            raise OutputError(
                f"{self._folder} has {len(present)} of the images to save already, the first: "
                f"{present[0]}; choose another folder, or add --overwrite to replace them"
            )

    def save(self, file: ImageFile, data: bytes, result: DetectResult) -> None:
        """Draws a result on its image and writes it under the name of the file.

        A failure is reported and counted; it does not affect the result, nor other images.
        """
        try:
            drawn = render_detections(data, result.detections, result.label_names, self._limits)
            self._write(file, drawn)
        except (DetectionError, MemoryError, OSError, OutputError) as error:
            short = isinstance(error, MemoryError)
            reason = "not enough memory to draw it" if short else describe_failure(error)
            self.num_failed += 1
            self._report(f"{file.name}: the image with its boxes is not saved: {reason}")

    def _write(self, file: ImageFile, drawn: RenderedImage) -> None:
        suffix = _SUFFIXES[drawn.media_type]
        name = next(
            name
            for name in (_name(file, number, suffix) for number in itertools.count(1))
            if name not in self._used_names and self._folder / name not in self._inputs
        )
        self._used_names.add(name)
        write_output(self._folder / name, drawn.data, overwrite=self._overwrite)


def _path(file: ImageFile) -> Path:
    return Path("/dev/stdin" if file.name == STDIN else file.name)


def _name(file: ImageFile, number: int, suffix: str) -> str:
    """Returns the name of an output; those after the first of a name have their number in it."""
    stem = "stdin" if file.name == STDIN else Path(file.name).stem
    return f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}"


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
        # A str would be parsed as markup: brackets and :names: of emojis would be lost.
        label = Text(label_name(result.label_names, int(class_id)))
        table.add_row(label, f"{score:.2f}", *corners)
    console.print(table)
