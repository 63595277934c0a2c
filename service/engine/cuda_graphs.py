"""CUDA graphs, one for each bucket and batch size: recorded in the warm-up, replayed afterwards.

A graph takes the launches of a batch (a thousand and more) off the host's hands. A batch that no
graph was recorded for runs launch by launch and gets the same numbers. Where one finds no memory,
only smaller ones are tried from then on; any other failure ends the recording. Either is told in
one warning: graphs may make a start no worse than it was without them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from service.engine.cuda_card import Card
from service.engine.device import BatchShape

_SCORE_BOUND = 1e-2  # scores of a replay against those of the same work launch by launch

# The standard library's, which ends in the same log: benchmarks run this on a bare GPU machine.
_log = logging.getLogger(__name__)


class CudaGraphs:
    """The graphs of one model on one card.

    Args:
        card: where they are recorded.
        most: of them; 0: none.
    """

    def __init__(self, card: Card, most: int) -> None:
        self._card = card
        self._most = most
        self.given_up = False  # something but memory was missing
        self._fits_below = math.inf  # padded pixels of a batch
        self._kept: dict[BatchShape, Callable[[], Tensor]] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    def run(self, shape: BatchShape, work: Callable[[], Tensor]) -> Tensor:
        """Asks the current stream for `work`, by a graph where there is one.

        Returns:
            float32 [B, K, 6] on the device; a graph's next replay writes it again.
        """
        return self._kept.get(shape, work)()

    def record(self, shape: BatchShape, work: Callable[[], Tensor]) -> bool:
        """Records a graph, checks it, and keeps it.

        Args:
            shape: of the batches that it is for.
            work: what such a batch asks the card for, from static buffers; it never waits.

        Returns:
            Whether there is one now. No failure is raised; the first is told in the log.
        """
        if shape in self._kept:
            return True
        if (
            self.given_up
            or len(self._kept) >= self._most
            or self._fits_below <= shape.padded_pixels
        ):
            return False
        try:
            if not self._card.has_free_memory():
                raise torch.OutOfMemoryError("the card's memory is nearly full")
            with self._card.computing():
                expected = work()  # kernels are loaded and plans made before anything is recorded
                self._card.wait()
                replay = self._card.record(work)
                difference = _score_difference(replay(), expected)
        except Exception as error:  # whatever cannot be recorded: it can still be run
            if not _is_about_memory(error):
                self.given_up = True
            return self._tell(shape, f"{type(error).__name__}: {error}")
        if not difference <= _SCORE_BOUND:  # NaN is no agreement
            self.given_up = True
            return self._tell(shape, f"a replay's scores are off by {difference:g}")
        self._kept[shape] = replay
        return True

    def _tell(self, shape: BatchShape, reason: str) -> bool:
        """Warns, where it is the first time or the last; returns False."""
        if self.given_up or self._fits_below == math.inf:
            _log.warning(
                "batches of this shape%s have no CUDA graph and run launch by launch: %s",
                " and all that follow" if self.given_up else " and larger ones",
                reason,
                extra={
                    "recorded": len(self._kept),
                    "padded": shape.padded,
                    "images": shape.images,
                },
            )
        self._fits_below = shape.padded_pixels
        return False


def _is_about_memory(error: BaseException | None) -> bool:
    """Also where ending the capture failed because of that."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None


def _score_difference(found: Tensor, expected: Tensor) -> float:
    """Of two results [B, K, 6], waiting for both. Rows of near ties may change places."""
    with torch.inference_mode():
        return float((found[..., 0] - expected[..., 0]).abs().max())
