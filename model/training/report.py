"""What a person sees of a run: progress, a log of numbers, the loss curve, sample pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from model.training.sources import Pixels

_CURVES = {  # name in the log -> colour
    "decoder": (31, 119, 180),
    "dense": (255, 127, 14),
    "denoising": (44, 160, 44),
    "proposals": (148, 103, 189),
}
_SIZE = (960, 540)  # pixels of the curve's picture
_MARGIN = 50
_FLOOR = 1e-4  # smallest loss shown
_FOUND = (230, 40, 40)
_WANTED = (20, 170, 60)


class Reporter:
    """Writes to a terminal's progress bar, or plain lines where there is no terminal.

    Args:
        folder: takes log.jsonl, loss.png and samples/.
        console: standard error if None.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        """Shows nothing yet."""
        self._folder = folder
        self._console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:>4.1f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=1.0, state="")

    def __enter__(self) -> Reporter:
        """Shows the bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the bar as it stands."""
        self._progress.stop()

    def line(self, text: str) -> None:
        """One line for people."""
        self._console.print(text, markup=False)

    def row(self, values: dict[str, Any], progress: float) -> None:
        """One row of the log, and of what is shown."""
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        text = (
            f"it {values['iteration']} epoch {values['epoch']} loss {values['total']:.3f}"
            f" (cls {values['classification']:.3f} l1 {values['box_l1']:.3f}"
            f" giou {values['giou']:.3f} dense {values['dense']:.3f})"
            f" lr {values['learning_rate']:.2e} {values['seconds_per_iteration']:.2f} s/it"
        )
        self._progress.update(self._task, completed=progress, state=text)
        if not self._console.is_terminal:
            self.line(f"{100 * progress:5.1f}% {text}")

    def forget_after(self, iteration: int) -> None:
        """Drops the log's rows past a resumed run's start."""
        rows = [row for row in read_log(self._folder) if row["iteration"] <= iteration]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self._folder / "log.jsonl").write_text(text, encoding="utf-8")

    def curve(self) -> None:
        """Draws the log so far."""
        rows = read_log(self._folder)
        if len(rows) > 1:
            draw_curve(rows).save(self._folder / "loss.png")

    def samples(self, iteration: int, pictures: Sequence[Image.Image]) -> None:
        """Writes sample pictures side by side."""
        folder = self._folder / "samples"
        folder.mkdir(exist_ok=True)
        height = max(picture.height for picture in pictures)
        sheet = Image.new("RGB", (sum(picture.width for picture in pictures), height))
        left = 0
        for picture in pictures:
            sheet.paste(picture, (left, 0))
            left += picture.width
        sheet.save(folder / f"iteration_{iteration:06d}.jpg", quality=85)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of log.jsonl; an unfinished last line is left out."""
    file = folder / "log.jsonl"
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def draw_curve(rows: Sequence[dict[str, Any]]) -> Image.Image:
    """The groups' losses over the iterations, on a logarithmic axis."""
    picture = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(picture)
    steps = np.array([row["iteration"] for row in rows], np.float64)
    values = {name: np.array([max(row[name], _FLOOR) for row in rows]) for name in _CURVES}
    shown = np.log10(np.concatenate([v[v > _FLOOR] for v in values.values()] + [np.ones(1)]))
    low, high = float(np.floor(shown.min() * 4) / 4), float(np.ceil(shown.max() * 4) / 4 + 0.25)
    width, height = _SIZE[0] - 2 * _MARGIN, _SIZE[1] - 2 * _MARGIN
    x = _MARGIN + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * width
    for part in range(5):
        level = low + (high - low) * part / 4
        y = _SIZE[1] - _MARGIN - height * part / 4
        pen.line((_MARGIN, y, _SIZE[0] - _MARGIN, y), fill=(220, 220, 220))
        pen.text((5, y - 6), f"{10**level:.3g}", fill="black")
        step = steps[0] + (steps[-1] - steps[0]) * part / 4
        pen.text((_MARGIN + width * part / 4 - 10, _SIZE[1] - 35), f"{step:.0f}", fill="black")
    for place, (name, colour) in enumerate(_CURVES.items()):
        y = _SIZE[1] - _MARGIN - (np.log10(values[name]).clip(low) - low) / (high - low) * height
        pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, width=2)
        pen.text((_MARGIN + 130 * place, 15), name, fill=colour, font_size=16)
    return picture


def draw_boxes(
    pixels: Pixels,
    wanted: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    captions: Sequence[str],
) -> Image.Image:
    """A picture with its true boxes in green and the found ones in red.

    Args:
        pixels: uint8 [h, w, 3].
        wanted: [n, 4] xyxy pixels.
        found: [m, 4] xyxy pixels.
        captions: m short texts.
    """
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(11)
    for box in wanted.tolist():
        pen.rectangle(box, outline=_WANTED, width=2)
    for box, caption in zip(found.tolist(), captions, strict=True):
        pen.rectangle(box, outline=_FOUND, width=1)
        pen.text((box[0] + 2, box[1] + 1), caption, fill=_FOUND, font=font)
    return picture
