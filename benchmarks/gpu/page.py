"""The report page of `run.sh`: each figure next to its floor and its goal.

    python -m benchmarks.gpu.page FOLDER      the folder of an unpacked results.tar.gz

A floor is the least time by counts and peaks (`roofline.py`, docs/kernels.md); a goal is what the
project aims at. Both are those of an H200. A part that did not run has no figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import results

ALL_FIGURES = "\n## All figures\n"  # heading of the last section
_COUNTER_LINES = 300
_CONDITIONS = (
    *("device", "capability", "torch", "cuda", "cudnn", "nvrtc", "kernels_compiled_before"),
    *("python", "date"),
)

Rows = dict[str, list[dict[str, Any]]]  # of each part


@dataclass(frozen=True)
class Goal:
    """One figure and what it is compared with."""

    what: str
    figure: float | None
    unit: str
    floor: str
    goal: float
    at_least: bool = False  # otherwise at most

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        sign = "≥" if self.at_least else "≤"
        if self.figure is None:
            return (self.what, "not measured", self.floor, f"{sign} {self.goal:g} {self.unit}", "")
        reached = self.figure >= self.goal if self.at_least else self.figure <= self.goal
        verdict = "reached" if reached else "missed"
        return (
            self.what,
            f"{self.figure:g} {self.unit}",
            self.floor,
            f"{sign} {self.goal:g} {self.unit}",
            verdict,
        )


def report(folder: Path) -> str:
    """The page in Markdown, from the result files of a folder."""
    lines = {path.stem: results.read(path) for path in sorted(folder.glob("*.jsonl"))}
    rows = {
        part: [line for line in found if line["kind"] == results.ROW]
        for part, found in lines.items()
    }
    sections = ["# Measurements on a GPU\n", *_conditions(lines), *_goals(rows)]
    sections += ["\n## Failures\n", *_texts(lines, results.FAILURE)]
    sections += ["\n## Left out\n", *_texts(lines, results.LEFT_OUT)]
    notes = folder / "parts.txt"
    if notes.exists():
        sections += ["\n## Parts\n", "```", notes.read_text(encoding="utf-8").rstrip(), "```"]
    sections += _counters(folder / "counters.txt")
    sections += [ALL_FIGURES, *_all_figures(rows)]
    return "\n".join(sections) + "\n"


def _conditions(lines: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for found in lines.values():
        for line in found:
            if line["kind"] == results.CONDITIONS:
                yield ", ".join(f"{name} {line.get(name)}" for name in _CONDITIONS) + "\n"
                return
    yield "Nothing was measured.\n"


def _goals(rows: Rows) -> Iterator[str]:
    yield "## Goals\n"
    yield "| figure | measured | floor | goal | |"
    yield "|---|---:|---:|---:|---|"
    for goal in goals(rows):
        yield "| " + " | ".join(goal.cells()) + " |"


def goals(rows: Rows) -> list[Goal]:
    """The goals with what was measured."""
    key_aware = _attention(rows, "key-aware")
    plain = _attention(rows, "plain")
    eager = _ratio(key_aware.get("formula_float32_us"), key_aware.get("kernel_us"))
    original = _ratio(plain.get("original_kernel_us"), plain.get("kernel_us"))
    one, many = _replayed(rows, "r50", 1), _replayed(rows, "r50", 32)
    default = _replayed(rows, "default", 8).get("overlapped_images_per_second")
    http = max(
        (row["right"] / row["seconds"] for row in rows.get("service", []) if "right" in row),
        default=None,
    )
    share = _ratio(http, default)
    return [
        Goal(
            "key-aware attention, 22,223 queries, fp16", key_aware.get("kernel_us"), "µs", "36", 40
        ),
        Goal("plain attention, 22,223 queries, fp16", plain.get("kernel_us"), "µs", "28", 35),
        Goal("key-aware over the eager formula in fp32", eager, "x", "", 25, True),
        Goal("plain over the original kernel in fp16", original, "x", "", 7, True),
        Goal("R50, one image, fp16, GPU time", one.get("card_ms"), "ms", "2.8", 4),
        Goal("R50, one image, fp16, pixels to detections", one.get("whole_ms"), "ms", "", 5),
        Goal(
            "R50, batch 32, fp16",
            many.get("overlapped_images_per_second"),
            "images/s",
            "701",
            500,
            True,
        ),
        Goal("service over HTTP / pipeline, default model", share, "", "1", 0.9, True),
    ]


def _attention(rows: Rows, kind: str) -> dict[str, Any]:
    """The last row of all tokens in float16, which has the baselines if they ran."""
    for row in reversed(rows.get("attention", [])):
        if (row.get("attention"), row.get("queries"), row.get("dtype")) == (
            kind,
            22_223,
            "float16",
        ):
            return row
    return {}


def _replayed(rows: Rows, part: str, batch: int) -> dict[str, Any]:
    for row in rows.get(part, []):
        if (row.get("precision"), row.get("batch")) == ("fp16", batch) and "replayed" in row:
            found: dict[str, Any] = row["replayed"]
            return found
    return {}


def _ratio(over: float | None, under: float | None) -> float | None:
    return round(over / under, 2) if over and under else None


def _texts(lines: dict[str, list[dict[str, Any]]], kind: str) -> list[str]:
    found = [
        f"- {part}: {line['text']}"
        for part, its in lines.items()
        for line in its
        if line["kind"] == kind
    ]
    return found or ["None."]


def _counters(path: Path) -> list[str]:
    """What the profiler printed, without its progress; nothing if it did not run."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    shown = [line for line in lines if line.strip() and not line.startswith(("==PROF==", "{"))]
    return ["\n## Hardware counters\n", "```", *shown[-_COUNTER_LINES:], "```"]


def _all_figures(rows: Rows) -> Iterator[str]:
    for part, found in rows.items():
        yield f"\n### {part}\n"
        for row in found:
            figures = {name: value for name, value in row.items() if name != "kind"}
            kernels = figures.pop("kernel_times", [])
            yield "- " + ", ".join(f"{name} {value}" for name, value in figures.items())
            for kernel in kernels:
                yield f"    - {kernel['us']} µs, {kernel['count']} x {kernel['name']}"


if __name__ == "__main__":
    print(report(Path(sys.argv[1])))
