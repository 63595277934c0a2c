"""The report at the end of a run: one Markdown page, charts, and the images with most errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.data.annotations import GroundTruth
from model.data.errors import DataError
from model.data.image_files import read_image
from model.data.output_files import naming_file
from model.evaluation.operating_points import (
    THRESHOLDS,
    ClassCurve,
    ImageErrors,
    class_curves,
    confusion_matrix,
    image_errors,
)
from model.training.options import TrainOptions
from model.training.report import draw_boxes, duration, read_log
from model.training.run_folder import MODEL_FILE, REPORT_FILE, REPORT_FOLDER
from model.training.state import Position
from model.training.validation import Validation, ValidationSet

_WORST = 8  # images
_DRAWN_SIDE = 800  # pixels: longest side of a drawn image
_CONFUSIONS = 8  # pairs in the table
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|#&~$]")  # characters that format text or begin HTML


@dataclass(frozen=True)
class RunResult:
    """What a report is about.

    Attributes:
        options: of the run.
        place: of the run at its end.
        validation: of the best weights.
        data: the validation images.
        threshold: default score threshold of the model.
        images_per_step: of all processes.
    """

    options: TrainOptions
    place: Position
    validation: Validation
    data: ValidationSet
    threshold: float
    images_per_step: int

    @property
    def names(self) -> list[str]:
        """Class names, in category order."""
        return list(self.data.truth.categories.values())


def write_report(result: RunResult) -> tuple[Path, ...]:
    """Writes `report.md` and its images into the output folder.

    Returns:
        The files, the page first.
    """
    options, predictions, truth = result.options, result.validation.predictions, result.data.truth
    folder = options.output / REPORT_FOLDER
    folder.mkdir(exist_ok=True)
    curves = class_curves(predictions, truth)
    matrix = confusion_matrix(predictions, truth, result.threshold)
    charts = _draw_charts(result, curves, matrix, folder)
    worst = _draw_worst(result, image_errors(predictions, truth, result.threshold)[:_WORST], folder)
    page = options.output / REPORT_FILE
    sections = (
        f"# {options.name or options.variant}\n",
        _summary(result),
        _class_table(result, curves),
        _confusion_table(matrix, result.names),
        *(f"![{chart.stem}]({REPORT_FOLDER}/{chart.name})\n" for chart in charts),
        "" if charts else "Charts need matplotlib (the extra `train`).\n",
        _worst_section(worst, truth),
    )
    with naming_file(page):
        page.write_text("\n".join(filter(None, sections)), encoding="utf-8")
    return (page, *charts, *(file for file, _ in worst))


def _draw_charts(
    result: RunResult,
    curves: Sequence[ClassCurve],
    matrix: npt.NDArray[np.int64],
    folder: Path,
) -> tuple[Path, ...]:
    if find_spec("matplotlib") is None:
        return ()
    from model.training import charts  # noqa: PLC0415 - an extra

    files = [folder / f"{name}.png" for name in ("training", "precision_recall", "f1", "confusion")]
    charts.draw_training(read_log(result.options.output), files[0])
    charts.draw_precision_recall(curves, files[1])
    charts.draw_f1(curves, result.threshold, files[2])
    charts.draw_confusions(matrix, result.names, files[3])
    return tuple(files)


def _summary(result: RunResult) -> str:
    scores, place, options = result.validation.scores, result.place, result.options
    return (
        f"AP {scores.ap or 0:.3f}, **AP50 {scores.ap50 or 0:.3f}**, AP75 {scores.ap75 or 0:.3f} "
        f"on {scores.num_images} validation images with {scores.num_boxes} boxes of "
        f"{len(result.names)} classes.\n\n"
        f"- Weights: `{MODEL_FILE}`, of iteration {place.best_iteration}; {place.iteration} "
        f"iterations of {result.images_per_step} images in {duration(place.elapsed_seconds)}.\n"
        f"- Validation: {_text(result.data.description)}.\n"
        f"- Stored in the file: score threshold {result.threshold:.2f}, duplicate_iou "
        f"{result.validation.duplicate_iou:g}, longest side of images "
        f"{options.input_side or 'as in the variant'}.\n"
        f"- Steps skipped because a loss was not finite: {place.skipped}.\n"
        + (
            f"- Images that cannot be read and count as without detections: {len(unread)}, the "
            f"first: {_text(unread[0])}.\n"
            if (unread := scores.unreadable_images)
            else ""
        )
    )


def _class_table(result: RunResult, curves: Sequence[ClassCurve]) -> str:
    threshold = result.threshold
    at = int(np.abs(THRESHOLDS - threshold).argmin())
    by_name = {curve.name: curve for curve in curves}
    rows = [
        f"## Classes\n\nPrecision, recall and F1 at score threshold {threshold:.2f} and IoU 0.5.\n",
        "| class | boxes | AP | AP50 | precision | recall | F1 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result.validation.scores.per_class:
        curve = by_name[row.name]
        precision = f"{curve.precision[at]:.3f}" if curve.num_found[at] else "-"
        rows.append(
            f"| {_text(row.name)} | {row.num_boxes} | {row.ap or 0:.3f} | {row.ap50 or 0:.3f} "
            f"| {precision} | {curve.recall[at]:.3f} | {curve.f1[at]:.3f} |"
        )
    absent = [name for name in result.names if name not in by_name]
    if absent:
        rows.append(f"\nWithout a box in the validation images: {', '.join(map(_text, absent))}.")
    return "\n".join(rows) + "\n"


def _confusion_table(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """Lists the most frequent errors; the chart has the whole matrix."""
    truth = [*names, "nothing"]
    found = [*names, "missed"]
    pairs = [
        (int(matrix[row, column]), truth[row], found[column])
        for row, column in np.ndindex(*matrix.shape)
        if row != column and matrix[row, column]
    ]
    if not pairs:
        return "## Errors\n\nNone.\n"
    lines = [
        f"| {_text(wanted)} | {_text(seen)} | {count} |"
        for count, wanted, seen in sorted(pairs, reverse=True)[:_CONFUSIONS]
    ]
    head = ("## Errors\n\nThe most frequent ones.\n", "| annotated | detected as | boxes |")
    return "\n".join([*head, "|---|---|---:|", *lines]) + "\n"


def _text(text: str) -> str:
    """Returns text as Markdown that shows it, also in a cell of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", text).replace("\n", " ")


def _draw_worst(
    result: RunResult, errors: Sequence[ImageErrors], folder: Path
) -> list[tuple[Path, ImageErrors]]:
    """Draws the images with most errors: annotated boxes green, detected ones red."""
    data, threshold = result.data, result.threshold
    images = {image.image_id: image for image in data.truth.images}
    found = {entry.image_id: entry.detections for entry in result.validation.predictions}
    drawn = []
    for number, error in enumerate(errors, 1):
        if not error.total:
            break
        image = images[error.image_id]
        try:
            picture = read_image(data.folder / image.file_name)
        except DataError:
            continue
        scale = min(_DRAWN_SIDE / max(picture.size), 1.0)
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
        boxes = np.array([box.xyxy for box in image.boxes], np.float32).reshape(-1, 4)
        if error.image_id not in found:
            continue
        shown = found[error.image_id].keep(found[error.image_id].scores >= threshold)
        captions = [
            f"{data.truth.categories[int(label)][:12]} {score:.2f}"
            for label, score in zip(shown.labels, shown.scores, strict=True)
        ]
        file = folder / f"worst_{number}.jpg"
        drawing = draw_boxes(pixels, boxes * scale, shown.boxes_xyxy * scale, captions)
        with naming_file(file):
            drawing.save(file, quality=85)
        drawn.append((file, error))
    return drawn


def _worst_section(worst: Sequence[tuple[Path, ImageErrors]], truth: GroundTruth) -> str:
    if not worst:
        return ""
    names = {image.image_id: image.file_name for image in truth.images}
    lines = ["## Images with most errors\n", "Annotated boxes are green, detected ones red.\n"]
    for file, error in worst:
        name = _text(names[error.image_id])
        lines.append(f"Image {name}: {error.missed} missed, {error.false} false.\n")
        lines.append(f"![{file.stem}]({REPORT_FOLDER}/{file.name})\n")
    return "\n".join(lines)
