from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.engine.cuda_graphs import CudaGraphs
from service.engine.device import BatchShape, DeviceLost
from tests.support.standin_card import StandInCard

ONE, TWO = BatchShape((64, 96), 1), BatchShape((64, 96), 2)


def _work(shape: BatchShape) -> Callable[[], Tensor]:
    return lambda: torch.full((shape.images, 3, 6), 0.5)


def _recorded(graphs: CudaGraphs, *shapes: BatchShape) -> list[bool]:
    return [graphs.record(shape, _work(shape)) for shape in shapes]


def test_a_shape_is_recorded_once_and_replayed_from_then_on() -> None:
    card = StandInCard()
    graphs = CudaGraphs(card, max_graphs=8)
    assert _recorded(graphs, ONE, TWO, ONE) == [True, True, True]
    assert (len(graphs), card.recordings) == (2, 2)
    checked = card.replays
    graphs.run(ONE, _work(ONE))
    assert card.replays == checked + 1


def test_a_shape_without_a_graph_is_run_as_it_is() -> None:
    card = StandInCard()
    graphs = CudaGraphs(card, max_graphs=8)
    assert graphs.run(ONE, _work(ONE)).shape == (1, 3, 6)
    assert card.replays == card.recordings == 0


@pytest.mark.parametrize("limit", [0, 1])
def test_no_more_than_the_maximum_are_recorded(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    card = StandInCard()
    graphs = CudaGraphs(card, limit)
    _recorded(graphs, ONE, TWO)
    assert (len(graphs), card.recordings, caplog.records) == (limit, limit, [])


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"record_error": RuntimeError("operation not permitted")}, "not permitted"),
        ({"replay_error": 0.5}, "differ by 0.5"),
        ({"replay_error": float("nan")}, "differ by nan"),
    ],
)
def test_a_failure_is_logged_once_and_stops_the_recording(
    trouble: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    card = StandInCard()
    graphs = CudaGraphs(card, max_graphs=8)
    assert _recorded(graphs, ONE) == [True]
    for name, value in trouble.items():
        setattr(card, name, value)
    assert _recorded(graphs, TWO, BatchShape((96, 96), 1)) == [False, False]
    (warning,) = caplog.records
    assert (warning.levelname, vars(warning)["recorded"]) == ("WARNING", 1)
    assert reason in warning.getMessage()
    torch.testing.assert_close(graphs.run(TWO, _work(TWO)), _work(TWO)())


def _memory_error_at_the_end() -> RuntimeError:
    """As torch raises it if ending a capture fails because memory ran out during it."""
    error = RuntimeError("capture invalidated")
    error.__context__ = torch.OutOfMemoryError("2 GiB short")
    return error


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"record_error": torch.OutOfMemoryError("2 GiB short")}, "2 GiB short"),
        ({"record_error": _memory_error_at_the_end()}, "capture invalidated"),
        ({"free": 0.09}, "memory is nearly full"),
    ],
)
def test_without_memory_only_smaller_graphs_are_tried(
    trouble: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    card = StandInCard()
    graphs = CudaGraphs(card, max_graphs=8)
    before = {name: getattr(card, name) for name in trouble}
    for name, value in trouble.items():
        setattr(card, name, value)
    assert _recorded(graphs, BatchShape((64, 96), 4), BatchShape((64, 96), 3)) == [False, False]
    for name, value in before.items():
        setattr(card, name, value)
    assert _recorded(graphs, BatchShape((64, 128), 3), TWO, ONE) == [False, True, True]
    assert not graphs.stopped
    (warning,) = caplog.records
    assert "and larger ones" in warning.getMessage()
    assert reason in warning.getMessage()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("an illegal memory access was encountered"), _memory_error_at_the_end()],
    ids=str,
)
def test_a_recording_that_loses_the_context_says_which_and_how_many_there_were(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    card = StandInCard()
    graphs = CudaGraphs(card, max_graphs=8)
    _recorded(graphs, TWO)
    card.record_error, card.record_loses = error, True
    with pytest.raises(DeviceLost, match=str(error)) as lost:
        _recorded(graphs, ONE)
    assert (lost.value.shape, lost.value.recorded, caplog.records) == (ONE, 1, [])


def test_work_that_loses_the_context_before_its_recording_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = StandInCard(lost=True)
    with pytest.raises(DeviceLost, match="illegal memory access") as lost:
        _recorded(CudaGraphs(card, max_graphs=8), ONE)
    assert (lost.value.shape, lost.value.recorded, card.recordings) == (ONE, 0, 0)


def test_all_graphs_take_at_most_half_of_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    card = StandInCard(free=0.9)
    graphs = CudaGraphs(card, max_graphs=8)
    assert _recorded(graphs, BatchShape((64, 96), 8)) == [True]
    card.free = 0.45
    assert _recorded(graphs, BatchShape((64, 96), 4)) == [True]
    card.free = 0.35
    assert _recorded(graphs, BatchShape((64, 96), 3)) == [False]
    card.free = 0.5  # another process has left
    assert _recorded(graphs, TWO) == [True]
    (warning,) = caplog.records
    assert "half of the GPU's memory" in warning.getMessage()
