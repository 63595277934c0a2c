"""The progress bar of `lite-detr eval`."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from service.cli.evaluation_progress import EvaluationProgress, format_rate


@pytest.mark.parametrize(
    ("done", "remaining", "seconds", "expected"),
    [
        (0, 5000, 3.0, ""),
        (1, 1, 0.0, ""),
        (10, 4990, 2.0, "5.0 images/s, 0:16:38 left"),
        (2, 4998, 8.0, "0.25 images/s, 5:33:12 left"),
        (5, 0, 1.0, "5.0 images/s, 0:00:00 left"),
    ],
)
def test_rate_and_remaining_time(done: int, remaining: int, seconds: float, expected: str) -> None:
    assert format_rate(done, remaining, seconds) == expected


def test_the_bar_fits_into_80_columns_and_leaves_out_resumed_images() -> None:
    text = io.StringIO()
    clock = itertools.count(0, 10)
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    progress = EvaluationProgress(console, lambda: float(next(clock)))
    progress.show(4000, 5000)
    progress.show(4020, 5000)
    progress.show(5000, 5000)
    progress.stop()
    lines = text.getvalue().replace("\r", "\n").splitlines()
    last = next(line for line in reversed(lines) if "5000/5000" in line)
    assert "33.3 images/s, 0:00:00 left" in last  # 1000 images in 30 s
    assert len(last.rstrip()) <= 80


def test_without_a_terminal_only_lines_are_printed() -> None:
    text = io.StringIO()
    progress = EvaluationProgress(Console(file=text))
    progress.show(0, 10)
    progress.print("resuming: 3 of 10 images are in [a].partial")
    progress.show(10, 10)
    progress.stop()
    assert text.getvalue() == "resuming: 3 of 10 images are in [a].partial\n"
