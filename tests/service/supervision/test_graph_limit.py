from __future__ import annotations

import pytest

from service.ipc.messages import RecordingLost, Start
from service.ipc.slots import SlotLayout
from service.supervision.graph_limit import GraphLimit

START = Start("", "", "cuda", 1, SlotLayout(1, 3, 1), "error", "json", max_cuda_graphs=64)


def _lost(recorded: int) -> RecordingLost:
    return RecordingLost("an illegal memory access", (832, 1344), 8, recorded)


def _most(limit: GraphLimit) -> int:
    return limit.apply(START).max_cuda_graphs


def test_the_maximum_is_that_of_the_settings_until_a_device_is_lost() -> None:
    limit = GraphLimit(64)
    limit.device_lost(graphs=0)
    limit.device_lost(graphs=0)
    limit.device_lost(graphs=64)  # a GPU may fail once
    assert _most(limit) == 64


def test_the_next_engine_stops_before_the_recording_that_lost_the_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit = GraphLimit(64)
    limit.recording_lost(_lost(recorded=5))
    assert _most(limit) == 5
    output = capsys.readouterr().out
    assert "records fewer CUDA graphs" in output
    assert "illegal memory access" in output
    assert "1344" in output


@pytest.mark.parametrize("recorded", [3, 5, 9])
def test_the_second_lost_recording_turns_graphs_off(recorded: int) -> None:
    limit = GraphLimit(64)
    limit.recording_lost(_lost(recorded=5))
    limit.recording_lost(_lost(recorded))
    assert _most(limit) == 0


def test_the_maximum_never_grows() -> None:
    limit = GraphLimit(4)
    limit.recording_lost(_lost(recorded=7))
    assert _most(limit) == 4


def test_the_second_loss_of_a_device_in_service_turns_graphs_off() -> None:
    limit = GraphLimit(64)
    limit.device_lost(graphs=64)
    limit.device_lost(graphs=60)
    assert _most(limit) == 0
