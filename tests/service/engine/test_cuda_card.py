"""The calls of torch's CUDA interface, with a stand-in for that interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from service.engine.cuda_card import CudaCard


class StandInCuda:
    """The part of `torch.cuda` that a card uses; streams are names."""

    def __init__(self, patch: Callable[[str, object], None]) -> None:
        self.current = "default"
        self.chosen: list[torch.device] = []
        self.capture_error: Exception | None = None
        self.captured_on: list[tuple[str, object, str]] = []
        self.replays = 0
        self.free = 50
        streams = iter(("copying", "computing"))
        for name, value in {
            "current_device": lambda: 0,
            "set_device": self.set_device,
            "Stream": lambda _: next(streams),
            "current_stream": lambda _: self.current,
            "stream": self.stream,
            "graph_pool_handle": lambda: "pool",
            "synchronize": lambda _: None,
            "empty_cache": lambda: None,
            "mem_get_info": lambda _: (self.free, 100),
            "CUDAGraph": self.graph_object,
            "graph": self.graph,
        }.items():
            patch(name, value)

    def set_device(self, device: torch.device) -> None:
        assert device.index is not None, "as torch: a device without its number is refused"
        self.chosen.append(device)

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def graph_object(self) -> Any:
        outer = self

        class Graph:
            def replay(self) -> None:
                outer.replays += 1

        return Graph()

    @contextmanager
    def graph(
        self, _: object, pool: object, stream: str, capture_error_mode: str
    ) -> Iterator[None]:
        """As torch's: if the capture fails, its stream stays the current one."""
        before, self.current = self.current, stream
        yield
        if self.capture_error is not None:
            raise self.capture_error
        self.captured_on.append((stream, pool, capture_error_mode))
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StandInCuda:
    return StandInCuda(lambda name, value: monkeypatch.setattr(torch.cuda, name, value))


@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_its_device_becomes_the_process_current_one(
    cuda: StandInCuda, name: str, index: int
) -> None:
    CudaCard(torch.device(name))
    assert cuda.chosen == [torch.device("cuda", index)]


def test_graphs_share_a_pool_and_are_captured_on_the_computing_stream(cuda: StandInCuda) -> None:
    card = CudaCard(torch.device("cuda"))
    result = torch.zeros(1)
    replays = [card.record(lambda: result) for _ in range(2)]
    assert cuda.captured_on == [("computing", "pool", "thread_local")] * 2
    assert replays[0]() is result
    assert cuda.replays == 1


def test_a_capture_that_fails_restores_the_stream(cuda: StandInCuda) -> None:
    card = CudaCard(torch.device("cuda"))
    cuda.capture_error = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(RuntimeError, match="not permitted"):
        card.record(lambda: torch.zeros(1))
    assert cuda.current == "default"
    with card.copying():
        assert cuda.current == "copying"
    with card.computing():
        assert cuda.current == "computing"


@pytest.mark.parametrize("torch_closes_it", [False, True], ids=["torch 2.11", "torch 2.12"])
def test_a_capture_that_fails_ends_the_use_of_the_pool(
    cuda: StandInCuda, monkeypatch: pytest.MonkeyPatch, torch_closes_it: bool
) -> None:
    ended: list[tuple[int, str]] = []

    def end(index: int, pool: str) -> None:
        ended.append((index, pool))
        if torch_closes_it:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    card = CudaCard(torch.device("cuda:1"))
    card.record(lambda: torch.zeros(1))
    assert ended == []
    cuda.capture_error = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(RuntimeError, match="not permitted"):
        card.record(lambda: torch.zeros(1))
    assert ended == [(1, "pool")]
    cuda.capture_error = None
    card.record(lambda: torch.zeros(1))
    assert len(cuda.captured_on) == 2


def test_an_error_of_the_work_during_a_capture_ends_the_use_of_the_pool(
    cuda: StandInCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda index, _: ended.append(index), raising=False
    )
    with pytest.raises(ZeroDivisionError):
        CudaCard(torch.device("cuda")).record(lambda: torch.zeros(1 // 0))
    assert ended == [0]


def test_the_free_share_of_the_memory(cuda: StandInCuda) -> None:
    card = CudaCard(torch.device("cuda"))
    cuda.free = 25
    assert card.free_share() == 0.25
