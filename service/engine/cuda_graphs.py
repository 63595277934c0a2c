"""CUDA graphs, one for each shape bucket and batch size: recorded in the warm-up, then replayed.

A graph replaces the launches of a batch (more than a thousand kernels) by one. A batch without a
graph runs kernel by kernel, with the same result. If memory runs out for a graph, only smaller ones
are recorded from then on; any other failure ends the recording. Both are logged as one warning and
never fail the start. A recording that loses the CUDA context ends the process; its replacement
records fewer graphs (`service.supervision.graph_limit`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from service.engine.cuda_card import Card
from service.engine.device import BatchShape, DeviceLost

_SCORE_BOUND = 1e-2  # maximum difference of scores between a replay and the work itself
_KEPT_FREE = 0.1  # of the GPU's memory: for batches without a graph
_MAX_SHARE = 0.5  # of the GPU's memory, for all graphs: another engine may start on the GPU

# The standard library's logger, for benchmarks on machines without structlog; same log.
_log = logging.getLogger(__name__)


class CudaGraphs:
    """The graphs of one model on one card.

    Args:
        card: the GPU that records them.
        max_graphs: maximum number; 0: none.
    """

    def __init__(self, card: Card, max_graphs: int) -> None:
        self._card = card
        self._max_graphs = max_graphs
        self.stopped = False  # after a failure other than missing memory
        self._fits_below = math.inf  # padded pixels of a batch
        self._graphs: dict[BatchShape, Callable[[], Tensor]] = {}
        self._free_before: float | None = None  # share of the memory, before the first graph

    def __len__(self) -> int:
        """The number of graphs."""
        return len(self._graphs)

    def run(self, shape: BatchShape, work: Callable[[], Tensor]) -> Tensor:
        """Runs `work` on the current stream, as a graph if there is one.

        Returns:
            float32 [B, K, 6] on the GPU; the graph's next replay overwrites it.
        """
        return self._graphs.get(shape, work)()

    def record(self, shape: BatchShape, work: Callable[[], Tensor]) -> bool:
        """Records a graph, checks it, and keeps it.

        Args:
            shape: of the batches that it is for.
            work: launches the work of such a batch, from static buffers; never waits.

        Returns:
            Whether there is a graph now. Other failures are not raised; the first one is logged.

        Raises:
            DeviceLost: if the CUDA context is lost.
        """
        if shape in self._graphs:
            return True
        if (
            self.stopped
            or len(self._graphs) >= self._max_graphs
            or self._fits_below <= shape.padded_pixels
        ):
            return False
        try:
            self._check_memory()
            with self._card.computing():
                expected = work()  # loads kernels and makes plans, which cannot be recorded
                self._card.wait()
                replay = self._card.record(work)
                difference = _score_difference(replay(), expected)
        except Exception as error:  # what cannot be recorded can still run
            if self._is_lost():
                reason = f"{type(error).__name__}: {error}"
                raise DeviceLost(reason, shape, len(self._graphs)) from error
            if not _is_about_memory(error):
                self.stopped = True
            return self._warn(shape, f"{type(error).__name__}: {error}")
        if not difference <= _SCORE_BOUND:  # also for NaN
            self.stopped = True
            return self._warn(shape, f"the scores of a replay differ by {difference:g}")
        self._graphs[shape] = replay
        return True

    def _is_lost(self) -> bool:
        """Whether the CUDA context is lost: then every later call fails, too."""
        try:
            self._card.wait()
        except torch.OutOfMemoryError:
            return False
        except RuntimeError:
            return True
        return False

    def _check_memory(self) -> None:
        """Raises torch.OutOfMemoryError if another graph should not be recorded."""
        free = self._card.free_share()
        if self._free_before is None:
            self._free_before = free
        if free < _KEPT_FREE:
            raise torch.OutOfMemoryError("the GPU's memory is nearly full")
        if self._free_before - free > _MAX_SHARE:
            raise torch.OutOfMemoryError("the graphs take half of the GPU's memory")

    def _warn(self, shape: BatchShape, reason: str) -> bool:
        """Logs the first failure and the one that stops the recording; returns False."""
        if self.stopped or self._fits_below == math.inf:
            _log.warning(
                "batches of this shape%s have no CUDA graph and run kernel by kernel: %s",
                " and all that follow" if self.stopped else " and larger ones",
                reason,
                extra={
                    "recorded": len(self._graphs),
                    "padded": shape.padded,
                    "images": shape.images,
                },
            )
        self._fits_below = shape.padded_pixels
        return False


def _is_about_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, also if that made ending the capture fail."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None


def _score_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two results [B, K, 6]; waits for both.

    Only scores are compared: rows of near ties may swap.
    """
    with torch.inference_mode():
        return float((found[..., 0] - expected[..., 0]).abs().max())
