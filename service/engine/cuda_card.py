"""A GPU as the pipeline uses it: two streams, pinned memory, events, graphs.

`CudaCard` contains everything that needs a GPU, so that the rest can be tested without one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Protocol, cast

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a stream's work (`torch.cuda.Event`)."""

    def record(self) -> None:
        """Records the event after the work launched on the current stream so far."""

    def wait(self) -> None:
        """Makes the current stream wait for the event; the host does not wait."""

    def query(self) -> bool:
        """Whether the event has occurred."""

    def synchronize(self) -> None:
        """Makes the host wait for the event."""

    def elapsed_time(self, later: Event, /) -> float:
        """Milliseconds on the GPU until a later event; both must have occurred."""


class Card(Protocol):
    """The operations of a GPU that the pipeline uses."""

    def pinned(self, num_bytes: int) -> Tensor:
        """Allocates pinned host memory: uint8 [num_bytes]."""

    def memory(self, num_bytes: int) -> Tensor:
        """Allocates GPU memory: uint8 [num_bytes]."""

    def event(self) -> Event:
        """Creates an event that measures time."""

    def copying(self) -> AbstractContextManager[object]:
        """Context in which work is launched on the copy stream."""

    def computing(self) -> AbstractContextManager[object]:
        """Context in which work is launched on the compute stream."""

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Records a CUDA graph of `work`, which has run before.

        Returns:
            A function that replays it on the current stream; every replay returns the same tensor.

        Raises:
            RuntimeError: if an operation cannot be recorded, or memory runs out.
        """

    def free_share(self) -> float:
        """The share of the GPU's memory that is free, 0..1."""

    def wait(self) -> None:
        """Makes the host wait until the GPU is idle.

        Raises:
            RuntimeError: if the GPU is lost.
        """


class CudaCard:
    """An NVIDIA GPU, used through torch.

    Args:
        device: a CUDA device; it becomes the process's current one.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        torch.cuda.set_device(self._device)  # requires a device with an index
        self._copying = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._computing = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # One pool for all graphs: they never run at the same time, so they can share the memory
        # that they need only while they run.
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self._device)  # weights were loaded on another stream

    def pinned(self, num_bytes: int) -> Tensor:
        """See `Card`."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def memory(self, num_bytes: int) -> Tensor:
        """See `Card`; zeroed, so that nothing computes with old contents."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def event(self) -> Event:
        """See `Card`."""
        return cast(Event, torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]

    def copying(self) -> AbstractContextManager[object]:
        """See `Card`."""
        return torch.cuda.stream(self._copying)

    def computing(self) -> AbstractContextManager[object]:
        """See `Card`."""
        return torch.cuda.stream(self._computing)

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Card`."""
        graph = torch.cuda.CUDAGraph()
        # The outer context restores the stream: if a capture fails, torch leaves its own stream
        # current. "thread_local": work of other threads does not break the capture.
        try:
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._device)),
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._computing,
                    capture_error_mode="thread_local",
                ),
            ):
                found = work()
        except BaseException:
            self._close_pool()
            raise

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay

    def _close_pool(self) -> None:
        """Ends the use of the graphs' pool after a failed capture.

        torch before 2.12 does not: it would keep memory of finished work from then on. Later
        versions refuse the second end.
        """
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)

    def free_share(self) -> float:
        """See `Card`; memory that torch has cached counts as free."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return free / total

    def wait(self) -> None:
        """See `Card`."""
        torch.cuda.synchronize(self._device)
