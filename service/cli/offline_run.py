"""One run of `lite-detr detect`: results on stdout, progress on stderr."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.images.decode import ImageLimits
from service.cli.failure import is_debugging
from service.cli.inputs import ImageFile, find_images
from service.cli.offline import OfflineDetector, open_device
from service.cli.results import ImageSaver, print_table
from service.core.encoding import FileResult
from service.core.formats import OUTPUT_FORMATS, EncodeInput, OutputFormat
from service.errors import InvalidOptions
from service.settings import Settings
from service.types import DetectOptions

_MIN_FILES_FOR_BAR = 2


@dataclass(frozen=True)
class OfflineRun:
    """The arguments of one run."""

    images: tuple[str, ...]  # files, folders, patterns, "-"
    output_format: str | None  # name in `OUTPUT_FORMATS`; None: a table
    save: Path | None  # folder for images with boxes drawn
    threshold: float | None
    max_detections: int | None
    labels: tuple[str, ...] | None


def run_offline(run: OfflineRun, settings: Settings) -> bool:
    """Detects in every image and prints the results.

    Args:
        run: the arguments.
        settings: the model, the device and the limits of an image, as for a service.

    Returns:
        Whether every image has a result.

    Raises:
        typer.BadParameter: for an unknown format, and options that the model does not have.
        CheckpointError: for a model that does not exist or cannot be used.
    """
    output_format = None if run.output_format is None else _printed_format(run.output_format)
    limits = ImageLimits(
        settings.max_body_bytes, settings.max_image_pixels, settings.max_jpeg_scans
    )
    saver = None if run.save is None else ImageSaver(run.save, limits)
    options = DetectOptions(run.threshold, run.max_detections, run.labels)
    try:
        detector = OfflineDetector(
            open_device(settings),
            limits,
            options,
            on_result=None if saver is None else saver.save,
            show_tracebacks=is_debugging(),
        )
    except InvalidOptions as error:
        raise typer.BadParameter(error.detail) from None
    results = _detect_all(detector, find_images(run.images))
    if output_format is None:
        print_table(results)
    else:
        indent = sys.stdout.isatty()
        encoded = output_format.encode(EncodeInput(results, detector.labels, indent=indent))
        _print_bytes(encoded.data)
    return all(result.error is None for result in results)


def _printed_format(name: str) -> OutputFormat:
    """The format of that name.

    Raises:
        typer.BadParameter: for a name that is unknown or is not printed.
    """
    printed = {each.name: each for each in OUTPUT_FORMATS.values() if not each.draws_images}
    if name not in printed:
        raise typer.BadParameter(f"--format is {name!r}; it takes one of {', '.join(printed)}")
    return printed[name]


def _detect_all(detector: OfflineDetector, files: Sequence[ImageFile]) -> list[FileResult]:
    """Results in the order of the files, with a progress bar for several files."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=len(files) < _MIN_FILES_FOR_BAR,
    )
    run_id = uuid.uuid4().hex
    with bar:
        numbered = enumerate(bar.track(files, description="Detecting"), start=1)
        return [detector.detect(file, f"{run_id}-{number}") for number, file in numbered]


def _print_bytes(document: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(document + b"\n")
    sys.stdout.buffer.flush()
