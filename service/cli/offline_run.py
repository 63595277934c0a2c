"""One run of `lite-detr detect`: photos in, answers on stdout; progress on stderr."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.images.decode import ImageLimits
from service.cli.failure import is_debugging
from service.cli.inputs import Photo, find_photos
from service.cli.offline import OfflineDetector, open_device
from service.cli.results import PictureSaver, print_table
from service.core.encoding import FileResult, encode_coco, encode_result_list
from service.errors import InvalidOptions
from service.settings import Settings
from service.types import DetectOptions

_BAR_FROM = 2  # photos; one needs no progress bar


@dataclass(frozen=True)
class OfflineRun:
    """What the user asked for."""

    photos: tuple[str, ...]  # files, folders, patterns, "-"
    form: Literal["table", "json", "coco"]  # of what is printed
    save: Path | None  # folder for pictures with boxes
    threshold: float | None
    max_detections: int | None
    labels: tuple[str, ...] | None


def run_offline(run: OfflineRun, settings: Settings) -> bool:
    """Detects in every photo and prints the answers.

    Args:
        run: what the user asked for.
        settings: the model, the device and the limits of a photo, as a service has them.

    Returns:
        Whether every photo has an answer.

    Raises:
        typer.BadParameter: for options that the model does not have.
        CheckpointError: for a model that cannot be used.
    """
    limits = ImageLimits(settings.max_body_bytes, settings.max_image_pixels)
    saver = None if run.save is None else PictureSaver(run.save, limits)
    options = DetectOptions(run.threshold, run.max_detections, run.labels)
    try:
        detector = OfflineDetector(
            open_device(settings),
            limits,
            options,
            on_answer=None if saver is None else saver.save,
            show_tracebacks=is_debugging(),
        )
    except InvalidOptions as error:
        raise typer.BadParameter(error.detail) from None
    outcomes = _detect_all(detector, find_photos(run.photos))
    for_people = sys.stdout.isatty()
    match run.form:
        case "json":
            _print_bytes(encode_result_list(outcomes, indent=for_people))
        case "coco":
            _print_bytes(encode_coco(outcomes, detector.labels, indent=for_people))
        case "table":
            print_table(outcomes)
    return all(outcome.error is None for outcome in outcomes)


def _detect_all(detector: OfflineDetector, photos: Sequence[Photo]) -> list[FileResult]:
    """Answers in the photos' order, with a progress bar where there are many."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=len(photos) < _BAR_FROM,
    )
    run_id = uuid.uuid4().hex
    with bar:
        numbered = enumerate(bar.track(photos, description="Detecting"), start=1)
        return [detector.detect(photo, f"{run_id}-{number}") for number, photo in numbered]


def _print_bytes(document: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(document + b"\n")
    sys.stdout.buffer.flush()
