"""The progress of `lite-detr eval` on a terminal: images, images per second and remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

_BAR_WIDTH = 20  # all columns fit into 80 characters


class EvaluationProgress:
    """A progress bar on stderr; without a terminal there is none, and lines are plain.

    Args:
        console: of stderr.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._bar = Progress(
            TextColumn("Evaluating"),
            BarColumn(_BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._first = 0  # images of an earlier run
        self._started = 0.0

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(Text(line), soft_wrap=True)

    def show(self, done: int, total: int) -> None:
        """Draws the bar; the first call starts it, with the images of an earlier run."""
        if self._task is None:
            self._first, self._started = done, self._clock()
            self._task = self._bar.add_task("", total=total, completed=done, rate="")
            self._bar.start()
        rate = format_rate(done - self._first, total - done, self._clock() - self._started)
        self._bar.update(self._task, completed=done, rate=rate)

    def stop(self) -> None:
        """Leaves the bar as it is and prints no more of it."""
        self._bar.stop()


def format_rate(done: int, remaining: int, seconds: float) -> str:
    """Formats images per second and the remaining time; empty before the first image."""
    if done < 1 or seconds <= 0:
        return ""
    rate = done / seconds
    left = round(remaining / rate)
    shown = f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"
    return f"{shown} images/s, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


@contextmanager
def evaluation_progress() -> Iterator[EvaluationProgress]:
    """Yields a progress bar that stops at the end."""
    progress = EvaluationProgress(Console(stderr=True))
    try:
        yield progress
    finally:
        progress.stop()
