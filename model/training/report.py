"""Reports of a run: progress, a log of numbers, the loss curve, sheets of sample images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from model.data.output_files import naming_file, write_output_whole
from model.training.loss_terms import LOSS_TERMS
from model.training.sources import Pixels

LOG_FILE = "log.jsonl"
CURVE_FILE = "loss.png"
SAMPLES_FOLDER = "samples"

_CURVE_COLOURS = (  # of the loss terms, in their order
    (31, 119, 180),
    (148, 103, 189),
    (44, 160, 44),
    (255, 127, 14),
    (214, 39, 40),
    (140, 86, 75),
    (227, 119, 194),
    (127, 127, 127),
)
_CURVE_SIZE = (960, 540)  # pixels
_MARGIN = 50
_LEGEND_WIDTH = 130
_SMALLEST_SHOWN = 1e-4  # loss
_DETECTED_COLOUR = (230, 40, 40)
_ANNOTATED_COLOUR = (20, 170, 60)
_HEADING = "  done epoch    iter     left    loss    cls     l1   giou    lr     AP   AP50"
_HEADING_EVERY = 20  # rows


@dataclass(frozen=True)
class Pace:
    """The position and speed of a run, for its display."""

    iteration: int
    progress: float  # 0..1
    seconds_per_iteration: float
    seconds_left: float


class Reporter:
    """Prints a table with a row per report, and in a terminal a line that changes with each step.

    The table fits 80 columns. Its lines are the same in a terminal and in a pipe.

    Args:
        folder: for log.jsonl, loss.png and samples/.
        console: standard error if None.
        silent: writes and shows nothing: of a process that is not the first.
    """

    def __init__(
        self, folder: Path, console: Console | None = None, *, silent: bool = False
    ) -> None:
        """Shows nothing yet."""
        self._folder = folder
        self._silent = silent
        self._console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._progress = Progress(
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:>5.1f} %"),
            TextColumn("{task.fields[state]}"),
            console=self._console,
            disable=silent or not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=1.0, state="first iteration")
        self._rows_since_heading = _HEADING_EVERY

    def __enter__(self) -> Reporter:
        """Shows the progress bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops the progress bar."""
        self._progress.stop()

    def line(self, text: str) -> None:
        """Prints a line of text; a run goes on without its terminal or pipe."""
        if not self._silent:
            with suppress(OSError):
                self._console.print(text, markup=False, emoji=False)

    def step(self, pace: Pace) -> None:
        """Shows the current iteration, in a terminal only."""
        state = (
            f"iteration {pace.iteration}, {pace.seconds_per_iteration:.2f} s each, "
            f"{duration(pace.seconds_left)} left"
        )
        self._progress.update(self._task, completed=pace.progress, state=state)

    def row(self, values: dict[str, Any], pace: Pace) -> None:
        """Appends a row to the log and shows it.

        Args:
            values: of one row of log.jsonl, the loss terms included; with val_ap and val_ap50
                after a validation.
            pace: of the run.
        """
        if self._silent:
            return
        log = self._folder / LOG_FILE
        with naming_file(log), log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if self._rows_since_heading >= _HEADING_EVERY:
            self.line(_HEADING)
            self._rows_since_heading = 0
        self._rows_since_heading += 1
        self.line(
            f"{100 * pace.progress:5.1f}% {values['epoch']:5d} {values['iteration']:7d} "
            f"{duration(pace.seconds_left):>8} {_shown(values, 'total', '7.2f')} "
            f"{_shown(values, 'classification')} {_shown(values, 'box_l1')} "
            f"{_shown(values, 'giou')} {values['learning_rate']:5.0e} "
            f"{_shown(values, 'val_ap')} {_shown(values, 'val_ap50')}"
        )

    def forget_after(self, iteration: int) -> None:
        """Deletes the log's rows after the iteration from which a run resumes."""
        if self._silent:
            return
        rows = [row for row in read_log(self._folder) if row["iteration"] <= iteration]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_output_whole(self._folder / LOG_FILE, text.encode())

    def curve(self) -> None:
        """Writes the loss curve of the log so far."""
        if self._silent:
            return
        rows = read_log(self._folder)
        if len(rows) > 1:
            with naming_file(self._folder / CURVE_FILE):
                draw_curve(rows).save(self._folder / CURVE_FILE)

    def samples(self, iteration: int, images: Sequence[Image.Image]) -> None:
        """Writes sample images side by side; nothing if there is none."""
        if not images or self._silent:
            return
        file = self._folder / SAMPLES_FOLDER / f"iteration_{iteration:06d}.jpg"
        file.parent.mkdir(exist_ok=True)
        height = max(image.height for image in images)
        sheet = Image.new("RGB", (sum(image.width for image in images), height))
        left = 0
        for image in images:
            sheet.paste(image, (left, 0))
            left += image.width
        with naming_file(file):
            sheet.save(file, quality=85)


def duration(seconds: float) -> str:
    """Formats seconds as m:ss or h:mm:ss."""
    whole = max(round(seconds), 0)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def _shown(values: dict[str, Any], name: str, form: str = "6.3f") -> str:
    """Formats a number of a row for its column; a resumed run may validate before any loss."""
    value = values.get(name)
    return "-".rjust(int(form[0])) if value is None else f"{value:{form}}"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of log.jsonl, without lines that are not whole."""
    file = folder / LOG_FILE
    rows = []
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            rows.append(row)
    return rows


def draw_curve(rows: Sequence[dict[str, Any]]) -> Image.Image:
    """Draws the weighted loss terms over the iterations, on a logarithmic axis.

    Args:
        rows: of the log, at least one; terms that a row lacks count as 0.
    """
    image = Image.new("RGB", _CURVE_SIZE, "white")
    pen = ImageDraw.Draw(image)
    steps = np.array([row["iteration"] for row in rows], np.float64)
    values = {
        name: np.array([max(row.get(name, 0.0), _SMALLEST_SHOWN) for row in rows])
        for name in LOSS_TERMS
    }
    shown = [value[value > _SMALLEST_SHOWN] for value in values.values()]
    logarithms = np.log10(np.concatenate([*shown, np.ones(1)]))
    low = float(np.floor(logarithms.min() * 4) / 4)
    high = float(np.ceil(logarithms.max() * 4) / 4 + 0.25)
    width, height = _CURVE_SIZE[0] - 2 * _MARGIN, _CURVE_SIZE[1] - 2 * _MARGIN
    _draw_grid(pen, (low, high), (float(steps[0]), float(steps[-1])))
    x = _MARGIN + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * width
    for number, (name, value) in enumerate(values.items()):
        colour = _CURVE_COLOURS[number % len(_CURVE_COLOURS)]
        share = (np.log10(value).clip(low) - low) / (high - low)
        y = _CURVE_SIZE[1] - _MARGIN - share * height
        pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, width=2)
        pen.text((_MARGIN + _LEGEND_WIDTH * number, 15), name, fill=colour, font_size=16)
    return image


def _draw_grid(
    pen: ImageDraw.ImageDraw, levels: tuple[float, float], steps: tuple[float, float]
) -> None:
    """Draws five horizontal lines and labels both axes.

    Args:
        pen: of the curve's image.
        levels: logarithm of the loss at the bottom and at the top.
        steps: iterations at the left and at the right.
    """
    width, height = _CURVE_SIZE[0] - 2 * _MARGIN, _CURVE_SIZE[1] - 2 * _MARGIN
    for part in range(5):
        level = levels[0] + (levels[1] - levels[0]) * part / 4
        y = _CURVE_SIZE[1] - _MARGIN - height * part / 4
        pen.line((_MARGIN, y, _CURVE_SIZE[0] - _MARGIN, y), fill=(220, 220, 220))
        pen.text((5, y - 6), f"{10**level:.3g}", fill="black")
        step = steps[0] + (steps[1] - steps[0]) * part / 4
        place = (_MARGIN + width * part / 4 - 10, _CURVE_SIZE[1] - 35)
        pen.text(place, f"{step:.0f}", fill="black")


def draw_boxes(
    pixels: Pixels,
    annotated: npt.NDArray[np.float32],
    detected: npt.NDArray[np.float32],
    captions: Sequence[str],
) -> Image.Image:
    """Returns an image with its annotated boxes in green and the detected ones in red.

    Args:
        pixels: uint8 [h, w, 3].
        annotated: [n, 4] xyxy pixels.
        detected: [m, 4] xyxy pixels.
        captions: m short texts.
    """
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(11)
    for box in annotated.tolist():
        pen.rectangle(box, outline=_ANNOTATED_COLOUR, width=2)
    for box, caption in zip(detected.tolist(), captions, strict=True):
        pen.rectangle(box, outline=_DETECTED_COLOUR, width=1)
        pen.text((box[0] + 2, box[1] + 1), caption, fill=_DETECTED_COLOUR, font=font)
    return image
