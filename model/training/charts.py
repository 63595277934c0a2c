"""Charts of a run as PNG files, by matplotlib: curves over the run and over the score threshold.

Figures are built without pyplot, which would keep global state.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.data.output_files import naming_file
from model.evaluation.operating_points import THRESHOLDS, ClassCurve, mean_f1
from model.training.loss_terms import LOSS_TERMS

_SIZE = (8.0, 4.5)  # inches
_DPI = 110
_LEGEND_CLASSES = 12  # more would hide the curves
_NUMBERS_CLASSES = 20  # classes up to which the cells of the confusion matrix have numbers
_NAMED_CLASSES = 50  # up to which its rows have names
_SMALLEST_LOSS = 1e-4


def draw_training(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws losses (logarithmic), AP and AP50 over the iterations.

    Args:
        rows: of log.jsonl.
        path: of the PNG file.
    """
    figure, (losses, scores) = _figure(1, 2)
    steps = [row["iteration"] for row in rows]
    for name in ("total", *LOSS_TERMS):
        values = [row.get(name, 0.0) for row in rows]
        if max(values, default=0.0) > _SMALLEST_LOSS:
            losses.plot(steps, np.maximum(values, _SMALLEST_LOSS), label=name, linewidth=1.2)
    losses.set(xlabel="iteration", ylabel="loss", yscale="log", title="training losses")
    validated = [row for row in rows if row.get("val_ap") is not None]
    for name, label in (("val_ap", "AP"), ("val_ap50", "AP50")):
        places = [row["iteration"] for row in validated]
        scores.plot(places, [row.get(name, 0.0) for row in validated], marker=".", label=label)
    scores.set(xlabel="iteration", ylim=(0, 1), title="validation")
    _save(figure, path)


def draw_precision_recall(curves: Sequence[ClassCurve], path: Path) -> None:
    """Draws precision over recall at IoU 0.5, a line per class."""
    figure, (axes,) = _figure(1, 1)
    for curve in curves:
        axes.plot(curve.recall, curve.precision, label=_label(curve, curves), linewidth=1.2)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("precision and recall at IoU 0.5")
    _save(figure, path)


def draw_f1(curves: Sequence[ClassCurve], threshold: float, path: Path) -> None:
    """Draws F1 over the score threshold, a line per class and their mean."""
    figure, (axes,) = _figure(1, 1)
    for curve in curves:
        axes.plot(THRESHOLDS, curve.f1, label=_label(curve, curves), linewidth=1.0)
    axes.plot(THRESHOLDS, mean_f1(curves), label="mean", linewidth=2.5, color="black")
    axes.axvline(threshold, color="grey", linestyle="--", label=f"threshold {threshold:.2f}")
    axes.set(xlabel="score threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("F1 at IoU 0.5")
    _save(figure, path)


def draw_confusions(matrix: npt.NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix; colours are shares of the row.

    Args:
        matrix: [C + 1, C + 1], see `confusion_matrix`.
        names: of the C classes.
        path: of the PNG file.
    """
    figure, (axes,) = _figure(1, 1, square=True)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _NAMED_CLASSES:
        ticks = np.arange(len(names) + 1)
        axes.set_xticks(ticks, [*map(_short, names), "missed"], rotation=60, ha="right")
        axes.set_yticks(ticks, [*map(_short, names), "nothing"])
    axes.set(xlabel="detected as", ylabel="annotated as")
    if len(names) <= _NUMBERS_CLASSES:
        for row, column in np.ndindex(*matrix.shape):
            if matrix[row, column]:
                dark = shares[row, column] > 0.5  # noqa: PLR2004 - half of the colour range
                axes.text(
                    column,
                    row,
                    str(matrix[row, column]),
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=8,
                )
    _save(figure, path, legend=False)


def _figure(rows: int, columns: int, *, square: bool = False) -> tuple[Any, tuple[Any, ...]]:
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    size = (_SIZE[1] * 1.3, _SIZE[1] * 1.3) if square else _SIZE
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, tuple(axes.flat)


def _save(figure: Any, path: Path, *, legend: bool = True) -> None:
    for axes in figure.axes:
        if legend and axes.lines:
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font does not have
        with naming_file(path):
            figure.savefig(path, format="png")


def _label(curve: ClassCurve, curves: Sequence[ClassCurve]) -> str | None:
    return _short(curve.name) if len(curves) <= _LEGEND_CLASSES else None


def _short(name: str) -> str:
    """Returns a class name that matplotlib neither takes for mathematics nor hides."""
    return name[:20].replace("$", r"\$").lstrip("_") or "_"
