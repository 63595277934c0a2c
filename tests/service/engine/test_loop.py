"""An engine with an asynchronous device: batches overlap, results keep their order."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest

from model.detections import Detections
from model.explanation import Explanation, SampledPoints
from service.engine import loop as engine_loop
from service.engine.device import BatchShape, DeviceResult, OutOfDeviceMemory
from service.engine.loop import Engine, OverlappingEngine, create_engine
from service.ipc.doorbell import EngineDoorbell
from service.ipc.messages import (
    BatchDone,
    BatchFailed,
    ExplainRequest,
    Message,
    RunBatch,
    Stop,
)
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotImage, SlotLayout, SlotMemory
from tests.service.engine.test_main import StandInDevice
from tests.support.fake_device import FAKE_MODEL, fake_detections

LAYOUT = SlotLayout(count=6, image_bytes=64 * 64 * 3, max_detections=8)
SIZE = (48, 64)
EXPLAIN_SECONDS = 0.05


@dataclass
class InFlight:
    """A batch of `LazyDevice`."""

    device: LazyDevice
    name: int  # the colour of its first image
    result: DeviceResult
    looks_left: int

    def done(self) -> bool:
        self.looks_left -= 1
        return self.looks_left < 0

    def finish(self) -> DeviceResult:
        self.device.calls.append(f"finish {self.name}")
        if self.name in self.device.failing:
            raise RuntimeError("illegal memory access")
        return self.result


@dataclass
class LazyDevice:
    """A batch is done after `looks` checks of `done`; batches are named by their colour."""

    name: str = "cuda:0"
    looks: int = 10**9  # the first batch then ends only after the second has started
    calls: list[str] = field(default_factory=list)
    failing: set[int] = field(default_factory=set)
    refused: dict[int, Exception] = field(default_factory=dict)
    broken: bool = False
    model = FAKE_MODEL
    implementations: dict[str, str] = field(default_factory=dict)

    def run(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> DeviceResult:
        return self.begin(images, padded, original_sizes).finish()

    def begin(
        self,
        images: Iterable[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> InFlight:
        found, names = [], []
        for image, size in zip(images, original_sizes, strict=True):
            names.append(int(image[0, 0, 0]))
            self.calls.append(f"take {names[-1]}")
            found.append(fake_detections(image, size))
        if names[0] in self.refused:
            raise self.refused[names[0]]
        result = DeviceResult(found, assemble_ms=1.0, forward_ms=3.0, postprocess_ms=0.5)
        return InFlight(self, names[0], result, self.looks)

    def explain(
        self,
        image: npt.NDArray[np.uint8],
        padded: tuple[int, int],
        original_size: tuple[int, int],
        detection: Detections,
    ) -> Explanation:
        self.calls.append(f"explain {image[0, 0, 0]}")
        time.sleep(EXPLAIN_SECONDS)
        box = tuple(detection.boxes_xyxy[0].tolist())
        points = SampledPoints(
            "decoder", 1, 1, True, box, np.zeros((1, 1, 1, 2)), np.ones((1, 1, 1))
        )
        label = FAKE_MODEL.labels[detection.labels[0]]
        return Explanation(label, float(detection.scores[0]), box, 0, 0, (8,), points, points)

    def record(self, shape: BatchShape) -> None:
        self.calls.append(f"record {shape.images}")

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        return ()

    def is_broken(self, error: Exception) -> bool:
        return self.broken


class Bench:
    """An overlapping engine in this process; batches are named by their images' colour."""

    def __init__(self) -> None:
        self.device = LazyDevice()
        self.pool = SlotPool(SlotMemory.create(LAYOUT))
        ours, theirs = socket.socketpair()
        ours.settimeout(120)
        self.sockets = (ours, theirs)
        self.edge = EngineDoorbell(ours)
        self.engine = create_engine(self.device, self.pool.memory, EngineDoorbell(theirs))
        self.slots: dict[int, tuple[int, int]] = {}

    def batch(self, *colours: int) -> RunBatch:
        return RunBatch(colours[0], (64, 64), tuple(self._lease(colour) for colour in colours))

    def _lease(self, colour: int) -> tuple[int, int]:
        lease = self.pool.acquire()
        pixels = np.full((*SIZE, 3), colour, dtype=np.uint8)
        lease.write_image(pixels, SlotImage(SIZE, (64, 64), (96, 128)))
        self.slots[colour] = (lease.slot, lease.generation)
        return self.slots[colour]

    def ring(self, *batches: RunBatch) -> list[Message | None]:
        for batch in batches:
            self.edge.send(batch)
        self.edge.send(Stop())
        self.engine.run()
        return [self.edge.receive() for _ in batches]

    def assert_answered(self, *colours: int) -> None:
        for colour in colours:
            found = self.pool.memory.read_result(*self.slots[colour])
            expected = fake_detections(np.full((*SIZE, 3), colour, np.uint8), (96, 128))
            np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.pool.close()
    for end in bench.sockets:
        end.close()


def test_only_an_asynchronous_device_overlaps(bench: Bench) -> None:
    assert isinstance(bench.engine, OverlappingEngine)
    plain = create_engine(StandInDevice(), bench.pool.memory, bench.edge)
    assert type(plain) is Engine


def test_the_next_batch_starts_before_the_previous_one_has_ended(bench: Bench) -> None:
    results = bench.ring(bench.batch(10), bench.batch(20), bench.batch(30))
    assert bench.device.calls == [
        *("take 10", "take 20", "finish 10"),
        *("take 30", "finish 20", "finish 30"),
    ]
    assert [result.batch_id for result in results if isinstance(result, BatchDone)] == [10, 20, 30]
    bench.assert_answered(10, 20, 30)


def test_a_result_does_not_wait_until_the_next_batch_is_assembled(bench: Bench) -> None:
    bench.device.looks = 2  # done while the second batch is assembled
    bench.ring(bench.batch(10), bench.batch(20, 21, 22))
    calls = bench.device.calls
    assert calls.index("finish 10") < calls.index("take 22")
    bench.assert_answered(10, 20, 21, 22)


def test_a_result_is_sent_without_a_following_message(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_loop, "_POLL_SECONDS", 1e-6)
    bench.device.looks = 5
    before = time.monotonic()
    bench.edge.send(bench.batch(10))
    monkeypatch.setattr(bench.engine, "_next_message", _once(bench.engine))
    bench.engine.run()
    done = bench.edge.receive()
    assert isinstance(done, BatchDone)
    assert done.started <= time.monotonic()
    assert done.started > before - 1
    assert (done.assemble_ms, done.forward_ms) == (1.0, 3.0)


def _once(engine: Engine) -> object:
    """Returns the first message, and then none."""
    first = engine._next_message
    left = [first]

    def next_message() -> Message | None:
        return left.pop()() if left else None

    return next_message


def test_a_detection_is_explained_after_its_batch_in_a_time_of_its_own(bench: Bench) -> None:
    batch = bench.batch(10)
    ((slot, _),) = batch.slots
    found = fake_detections(np.full((*SIZE, 3), 10, np.uint8), (96, 128))
    label = int(found.labels[0])
    request = ExplainRequest(1, 0.0, 8, (label,))
    before = time.monotonic()
    done, following = bench.ring(replace(batch, explain={str(slot): request}), bench.batch(20))
    seconds = time.monotonic() - before
    assert isinstance(done, BatchDone)
    assert isinstance(following, BatchDone)
    assert done.explanations is not None
    assert done.explanations[str(slot)]["label"] == FAKE_MODEL.labels[label]
    assert done.explain_ms >= EXPLAIN_SECONDS * 1000
    writing_ms = done.postprocess_ms - 0.5  # which the device reports
    assert writing_ms + done.explain_ms <= seconds * 1000
    assert (following.explanations, following.explain_ms) == (None, 0.0)
    bench.assert_answered(10, 20)


def test_a_detection_that_does_not_exist_is_not_explained(bench: Bench) -> None:
    batch = bench.batch(10)
    ((slot, _),) = batch.slots
    (done,) = bench.ring(replace(batch, explain={str(slot): ExplainRequest(1, 0.99, 8, None)}))
    assert isinstance(done, BatchDone)
    assert done.explanations == {}
    assert "explain 10" not in bench.device.calls


def test_a_batch_that_fails_at_its_end_does_not_affect_others(bench: Bench) -> None:
    bench.device.failing = {20}
    first, second, third = bench.ring(bench.batch(10), bench.batch(20), bench.batch(30))
    assert isinstance(first, BatchDone)
    assert second == BatchFailed(20, "RuntimeError: illegal memory access", "error")
    assert isinstance(third, BatchDone)
    bench.assert_answered(10, 30)


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (OutOfDeviceMemory("2 GiB short"), BatchFailed(20, "2 GiB short", "out_of_memory")),
        (ValueError("odd"), BatchFailed(20, "ValueError: odd", "error")),
    ],
)
def test_a_batch_that_cannot_start_is_reported_in_order(
    bench: Bench, error: Exception, failed: BatchFailed
) -> None:
    bench.device.refused = {20: error}
    first, second, third = bench.ring(bench.batch(10), bench.batch(20), bench.batch(30))
    assert isinstance(first, BatchDone)
    assert second == failed
    assert isinstance(third, BatchDone)
    bench.assert_answered(10, 30)


def test_a_stale_slot_fails_only_its_batch(bench: Bench) -> None:
    stale = bench.batch(20)
    ((slot, generation),) = stale.slots
    results = bench.ring(bench.batch(10), RunBatch(20, (64, 64), ((slot, generation - 1),)))
    assert isinstance(results[0], BatchDone)
    assert isinstance(results[1], BatchFailed)
    assert "StaleSlot" in results[1].reason


def test_a_lost_device_ends_the_process_after_the_finished_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.device.refused = {20: RuntimeError("illegal memory access")}
    bench.device.broken = True

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit):
        bench.ring(bench.batch(10), bench.batch(20))
    assert isinstance(bench.edge.receive(), BatchDone)
    bench.assert_answered(10)


def test_an_engine_ends_with_its_edge(bench: Bench) -> None:
    bench.edge.send(bench.batch(10))
    bench.sockets[0].shutdown(socket.SHUT_WR)
    bench.engine.run()
    assert isinstance(bench.edge.receive(), BatchDone)
