"""Compares an exported network with the plain one, in several batch sizes.

Images that differ by rounding may swap ranks in the query selection where two tokens have the same
score to the last bits; the rank decides which learned content a query gets, and so its result. Then
the plain network is run again with the selection of the exported one, which must differ from its
own in such ties only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.network.detector import LiteDETR
from model.ops import computed_by
from model.predictor import padding_of

TOLERANCE = 1e-3  # of logits, of boxes (in 0..1), and of the scores that a tie consists of


class Exported(Protocol):
    """An exported network, loaded again from its file by the runtime that will run it."""

    @property
    def runtime(self) -> str:
        """Name and version, for people."""

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, C] and boxes [B, Q, 4] of the inputs; see `ExportedNetwork.forward`."""

    def selected(self, inputs: Sequence[Tensor]) -> Tensor:
        """The tokens that became queries, int64 [B, Q], by their rank."""


class ParityError(Exception):
    """The exported network gives other results than the plain one; the message says which."""


@dataclass(frozen=True)
class Parity:
    """What was compared.

    Attributes:
        runtime: that ran the file.
        batch_sizes: of the comparisons.
        logits: the largest difference of a logit.
        boxes: the largest difference of a coordinate, 0..1.
        swapped: ranks of the query selection that differed, all of them ties.
    """

    runtime: str
    batch_sizes: tuple[int, ...]
    logits: float
    boxes: float
    swapped: int


def check_parity(
    exported: Exported,
    detector: LiteDETR,
    batches: Sequence[Sequence[Tensor]],
    tolerance: float = TOLERANCE,
) -> Parity:
    """Compares the results of an exported network with those of the plain one.

    Args:
        exported: the file, loaded.
        detector: the plain network, on the CPU.
        batches: the inputs of each comparison: pixels, and perhaps sizes.
        tolerance: of logits and boxes.

    Raises:
        ParityError: if a result differs by more.
    """
    logits = boxes = 0.0
    swapped = 0
    for inputs in batches:
        found = exported.run(inputs)
        own_selection, expected = _plain(detector, inputs)
        differences = _differences(found, expected)
        if not all(difference <= tolerance for difference in differences):
            chosen = exported.selected(inputs)
            swapped += own_selection.ties(chosen, len(inputs[0]), tolerance)
            _, expected = _plain(detector, inputs, chosen)
            differences = _differences(found, expected)
        for name, difference in zip(("logits", "boxes"), differences, strict=True):
            if not difference <= tolerance:  # also of NaN
                raise ParityError(
                    f"in a batch of {len(inputs[0])}, {name} differ by up to {difference:.2g} from "
                    f"those of the plain network; the limit is {tolerance:g}"
                )
        logits, boxes = max(logits, differences[0]), max(boxes, differences[1])
    sizes = tuple(len(inputs[0]) for inputs in batches)
    return Parity(exported.runtime, sizes, logits, boxes, swapped)


@dataclass(frozen=True)
class _Selection:
    """The query selection of the plain network."""

    scores: Tensor  # [B, S], of all tokens
    rows: Tensor  # int64 [B, Q]

    def ties(self, chosen: Tensor, batch: int, tolerance: float) -> int:
        """The ranks at which another selection has another token, of the same score.

        Raises:
            ParityError: if its tokens repeat, or a score differs by more than the tolerance.
        """
        if chosen.shape != self.rows.shape or any(len(row.unique()) < len(row) for row in chosen):
            raise ParityError(f"in a batch of {batch}, the query selection is not one of tokens")
        gap = (self.scores.gather(1, chosen) - self.scores.gather(1, self.rows)).abs().max()
        if not float(gap) <= tolerance:
            raise ParityError(
                f"in a batch of {batch}, the query selection differs: scores at the same rank "
                f"differ by up to {float(gap):.2g}; the limit is {tolerance:g}"
            )
        return int((chosen != self.rows).sum())


def _plain(
    detector: LiteDETR, inputs: Sequence[Tensor], chosen: Tensor | None = None
) -> tuple[_Selection, tuple[Tensor, Tensor]]:
    """The plain network's selection and results, perhaps with another selection than its own."""
    pixels = inputs[0]
    height, width = pixels.shape[2:]
    mask = torch.zeros(len(pixels), height, width, dtype=torch.bool)
    if len(inputs) > 1:
        mask = padding_of(inputs[1], (height, width))
        pixels = pixels.masked_fill(mask[:, None], 0.0)
    transformer, found = detector.transformer, []
    select = transformer.select_queries

    def record(best: Tensor) -> Tensor:
        found.append(_Selection(best, select(best)))
        return found[-1].rows if chosen is None else chosen

    transformer.select_queries = record  # type: ignore[method-assign]
    try:
        with torch.inference_mode(), computed_by("reference"):
            output = detector(pixels, mask)
    finally:
        del transformer.select_queries
    return found[-1], (output.pred_logits, output.pred_boxes)


def _differences(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> list[float]:
    """The largest differences of logits and of boxes; infinite for other shapes and for NaN."""
    return [
        float((ours - theirs).abs().nan_to_num(torch.inf).max())
        if ours.shape == theirs.shape
        else torch.inf
        for ours, theirs in zip(found, expected, strict=True)
    ]
