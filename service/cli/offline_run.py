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

from model.data.image_files import FILE_LIMITS
from service.cli.data_set_ids import match_files
from service.cli.failure import is_debugging, writing_to_stdout
from service.cli.inputs import ImageFile, find_images
from service.cli.offline import OfflineDetector, open_device
from service.cli.options import split_list
from service.cli.results import ImageSaver, print_table
from service.core.encoding import FileResult
from service.core.formats import OUTPUT_FORMATS, EncodeInput, OutputFormat
from service.core.tiling.options import parse_tile
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
    labels: tuple[str, ...] | None  # each one class name, or several separated by commas
    annotations: Path | None = None  # of a data set whose ids COCO output gets
    overwrite: bool = False  # replaces images in `save`
    tile: str | None = None  # "auto" or "640x480": cuts large images into tiles
    overlap: float | None = None  # of neighbouring tiles


def run_offline(run: OfflineRun, settings: Settings) -> bool:
    """Detects in every image and prints the results.

    Args:
        run: the arguments.
        settings: the model and the device.

    Returns:
        Whether every image has a result and, with `save`, was saved.

    Raises:
        typer.BadParameter: for an unknown format, and options that the model does not have.
        CheckpointError: for a model that does not exist or cannot be used.
        DataError: for annotations that cannot be used.
        OutputError: for images to save that exist already.
    """
    output_format = None if run.output_format is None else _printed_format(run.output_format)
    files: Sequence[ImageFile] = find_images(run.images, outputs=run.save)
    matched = None
    if run.annotations is not None:
        matched = match_files(run.annotations, files, _report)
        files = matched.files
    saver = None
    if run.save is not None:
        others = [run.annotations] if run.annotations is not None else []
        saver = ImageSaver(
            run.save,
            files,
            FILE_LIMITS,
            report=_report,
            overwrite=run.overwrite,
            other_inputs=others,
        )
    device = open_device(settings)
    try:
        detector = OfflineDetector(
            device,
            FILE_LIMITS,
            DetectOptions(
                run.threshold,
                run.max_detections,
                _class_names(run.labels, device.model.labels),
                tiles=parse_tile(run.tile, run.overlap),
            ),
            jpeg_decoding=settings.jpeg_decoding,
            on_result=None if saver is None else saver.save,
            show_tracebacks=is_debugging(),
        )
    except InvalidOptions as error:
        raise typer.BadParameter(error.detail) from None
    data_set = None if matched is None else matched.data_set(detector.model.labels, _report)
    results = _detect_all(detector, files)
    if output_format is None:
        with writing_to_stdout():
            print_table(results)
    else:
        job = EncodeInput(
            results,
            detector.model.labels,
            category_ids=detector.model.category_ids,
            data_set=data_set,
            indent=sys.stdout.isatty(),
        )
        document = output_format.encode(job).data
        with writing_to_stdout():
            _print_bytes(document)
    all_saved = saver is None or not saver.num_failed
    return all_saved and all(result.error is None for result in results)


def _report(line: str) -> None:
    """Prints a line that is no result."""
    typer.echo(line, err=True)


def _class_names(given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...] | None:
    """Returns class names; a value that is not one itself is split at its commas."""
    if given is None:
        return None
    return tuple(
        name for value in given for name in ((value,) if value in known else split_list(value))
    )


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
