from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model.detections import Detections
from model.weights.info import ModelInfo
from service.engine.device import BatchShape, Device, DeviceResult, OutOfDeviceMemory
from service.engine.loop import Engine
from service.engine.main import open_device
from service.ipc.doorbell import EngineDoorbell
from service.ipc.messages import (
    EXIT_DEVICE_LOST,
    BatchDone,
    BatchFailed,
    Hello,
    Message,
    RecordingLost,
    RunBatch,
    Start,
    StartFailed,
    Stop,
    encode_message,
)
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotImage, SlotLayout, SlotMemory
from service.supervision.process import _spawn
from tests.support.fake_device import FAKE_MODEL, FakeDevice, fake_detections

ROOT = Path(__file__).resolve().parents[3]
LAYOUT = SlotLayout(count=4, image_bytes=64 * 64 * 3, max_detections=8)
FACTORY = "tests.support.fake_device:open_fake_device"
START = Start(
    device_factory=FACTORY,
    model_path="",
    device="cpu",
    threads=1,
    layout=LAYOUT,
    device_options={"base_ms": 0, "per_image_ms": 0},
    log_level="warning",
    log_format="json",
)


@dataclass
class StandInDevice:
    """Returns the detections of the fake device, or a configured result."""

    name: str = "stand-in"
    model: ModelInfo = FAKE_MODEL
    implementations: Mapping[str, str] = field(default_factory=dict)
    error: Exception | None = None
    score: float = 0.5
    sizes: list[tuple[int, ...]] = field(default_factory=list)

    def run(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> DeviceResult:
        self.sizes += [image.shape for image in images]
        if self.error is not None:
            raise self.error
        found = [fake_detections(i, s) for i, s in zip(images, original_sizes, strict=True)]
        scored = [Detections(f.scores * 0 + self.score, f.labels, f.boxes_xyxy) for f in found]
        return DeviceResult(scored, 0.5, 2.0, 0.25, copy_ms=0.125)

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        return ()

    def is_broken(self, error: Exception) -> bool:
        return False


class Bench:
    """An engine in this process, with both ends of its doorbell."""

    def __init__(self, device: Device) -> None:
        self.pool = SlotPool(SlotMemory.create(LAYOUT))
        ours, theirs = socket.socketpair()
        ours.settimeout(120)
        self.sockets = (ours, theirs)
        self.edge = EngineDoorbell(ours)
        self.engine = Engine(device, self.pool.memory, EngineDoorbell(theirs))

    def ring(self, *messages: Message) -> list[Message | None]:
        for message in (*messages, Stop()):
            self.edge.send(message)
        self.engine.run()
        return [self.edge.receive() for _ in messages]

    def close(self) -> None:
        self.pool.close()
        for end in self.sockets:
            end.close()


@pytest.fixture
def device() -> StandInDevice:
    return StandInDevice()


@pytest.fixture
def bench(device: StandInDevice) -> Iterator[Bench]:
    bench = Bench(device)
    yield bench
    bench.close()


def _lease(bench: Bench, colour: int) -> tuple[int, int]:
    lease = bench.pool.acquire()
    pixels = np.full((48, 64, 3), colour, dtype=np.uint8)
    lease.write_image(pixels, SlotImage((48, 64), (64, 64), (96, 128)))
    return lease.slot, lease.generation


def test_results_of_a_batch_are_in_the_slots_of_its_images(bench: Bench) -> None:
    slots = (_lease(bench, 10), _lease(bench, 200))
    before = time.monotonic()
    (done,) = bench.ring(RunBatch(5, (64, 64), slots))
    assert isinstance(done, BatchDone)
    assert (done.batch_id, done.copy_ms, done.forward_ms) == (5, 0.125, 2.0)
    assert before <= done.started <= time.monotonic()
    assert done.assemble_ms >= 0.5
    assert done.postprocess_ms >= 0.25
    for (slot, generation), colour in zip(slots, (10, 200), strict=True):
        expected = fake_detections(np.full((48, 64, 3), colour, np.uint8), (96, 128))
        found = bench.pool.memory.read_result(slot, generation)
        np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_an_exception_is_reported_and_the_engine_continues(
    bench: Bench, device: StandInDevice
) -> None:
    device.error = ValueError("bad tensor")
    (failed,) = bench.ring(RunBatch(1, (64, 64), (_lease(bench, 1),)))
    assert failed == BatchFailed(1, "ValueError: bad tensor", "error")
    device.error = None
    (done,) = bench.ring(RunBatch(2, (64, 64), (_lease(bench, 1),)))
    assert isinstance(done, BatchDone)


def test_out_of_memory_is_reported_as_such(bench: Bench, device: StandInDevice) -> None:
    device.error = OutOfDeviceMemory("2 GiB short")
    (failed,) = bench.ring(RunBatch(1, (64, 64), (_lease(bench, 1),)))
    assert failed == BatchFailed(1, "2 GiB short", "out_of_memory")


def test_a_slot_of_another_generation_fails_the_batch_and_is_not_written(
    bench: Bench, device: StandInDevice
) -> None:
    slot, generation = _lease(bench, 1)
    (failed,) = bench.ring(RunBatch(1, (64, 64), ((slot, generation - 1),)))
    assert isinstance(failed, BatchFailed)
    assert "StaleSlot" in failed.reason
    assert device.sizes == []


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_results_that_are_not_finite_fail_the_batch(
    bench: Bench, device: StandInDevice, score: float
) -> None:
    device.score = score
    (failed,) = bench.ring(RunBatch(1, (64, 64), (_lease(bench, 1),)))
    assert isinstance(failed, BatchFailed)
    assert "not finite" in failed.reason


def test_engine_threads_wait_passively_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: started.append(env))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    _spawn(0, 0, None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    _spawn(0, 0, None)
    assert [env["OMP_WAIT_POLICY"] for env in started] == ["passive", "active"]


def test_only_the_torch_device_loads_torch() -> None:
    assert isinstance(open_device(START), FakeDevice)
    script = "import sys, service.engine.main, service.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


class RealEngine:
    """A `python -m service.engine.main` process whose edge is this test."""

    def __init__(self, start: Start | None = START, parent: int | None = None) -> None:
        self.memory = SlotMemory.create(LAYOUT)
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(60)
        fds = (theirs.fileno(), self.memory.fd)
        command = [sys.executable, "-m", "service.engine.main", "--doorbell-fd", str(fds[0])]
        command += ["--slots-fd", str(fds[1]), "--parent", str(parent or os.getpid())]
        self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=fds)
        theirs.close()
        self.edge = EngineDoorbell(self.ours)
        if start is not None:
            self.edge.send(start)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.ours.close()
        self.memory.close()


@pytest.fixture
def engines() -> Iterator[list[RealEngine]]:
    engines: list[RealEngine] = []
    yield engines
    for engine in engines:
        engine.close()


def test_an_engine_sends_hello_ignores_terminal_signals_and_ends_with_its_edge(
    engines: list[RealEngine],
) -> None:
    engine = RealEngine()
    engines.append(engine)
    hello = engine.edge.receive()
    assert isinstance(hello, Hello)
    assert (hello.pid, hello.model_name) == (engine.process.pid, "fake")
    for number in (signal.SIGINT, signal.SIGTERM):
        engine.process.send_signal(number)
    engine.edge.send(RunBatch(1, (64, 64), ()))
    assert isinstance(engine.edge.receive(), BatchDone)
    engine.ours.shutdown(socket.SHUT_RDWR)
    assert engine.process.wait(20) == 0


def test_an_engine_that_cannot_load_reports_the_reason(engines: list[RealEngine]) -> None:
    engine = RealEngine(replace(START, device_options={"start_ms": -1}))
    engines.append(engine)
    failed = engine.edge.receive()
    assert isinstance(failed, StartFailed)
    assert failed.reason.startswith("ValueError")
    assert engine.process.wait(20) == 1


def test_an_engine_reports_a_recording_that_lost_its_device_and_exits(
    engines: list[RealEngine],
) -> None:
    options = {"graphs": 5, "lost_at_graph": 2}
    engine = RealEngine(replace(START, max_cuda_graphs=8, device_options=options))
    engines.append(engine)
    lost = engine.edge.receive()
    assert lost == RecordingLost("an illegal memory access", (64, 64), images=3, recorded=2)
    assert engine.process.wait(20) == EXIT_DEVICE_LOST


def test_an_engine_without_an_edge_ends(engines: list[RealEngine]) -> None:
    orphan, bad_message = RealEngine(parent=1), RealEngine(start=None)
    engines += [orphan, bad_message]
    bad_message.ours.sendall(encode_message(Stop()))
    assert orphan.process.wait(30) == 0
    assert bad_message.process.wait(30) == 1
