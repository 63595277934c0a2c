from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model.geometry import reachable_buckets
from model.weights.info import ModelInfo
from service.engine.device import BatchShape, DeviceResult, OutOfDeviceMemory
from service.engine.torch_device import TorchDevice
from service.engine.warm_up import CPU_LIMIT_SECONDS, GPU_LIMIT_SECONDS, WarmUpLimits, warm_up
from tests.support.fake_device import FAKE_MODEL, FakeDevice, FakeDeviceSpec
from tests.support.small_weights import SMALL, write_small

SHAPES = [BatchShape((64, 96), 1), BatchShape((96, 64), 1), BatchShape((64, 96), 2)]


@dataclass
class SlowDevice:
    """Each batch takes a second of a fake clock; batches of `too_many` images do not fit."""

    name: str = "cpu"
    model: ModelInfo = FAKE_MODEL
    implementations: Mapping[str, str] = field(default_factory=dict)
    too_many: int = 9
    now: float = 0.0
    ran: list[BatchShape] = field(default_factory=list)

    def run(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> DeviceResult:
        self.now += 1
        if len(images) >= self.too_many:
            raise OutOfDeviceMemory("out of memory")
        assert all(image.shape == (*padded, 3) for image in images)
        self.ran.append(BatchShape(padded, len(images)))
        return DeviceResult((), 0.0, 0.0, 0.0)

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        return [shape for shape in SHAPES if shape.images <= max_batch_size]

    def is_broken(self, error: Exception) -> bool:
        return False


def _limits(seconds: float | None, size: int = 8) -> WarmUpLimits:
    return WarmUpLimits(seconds, size, 8_000_000)


def test_every_shape_is_run_in_the_devices_order() -> None:
    device = SlowDevice()
    done = warm_up(device, _limits(100), lambda: device.now)
    assert device.ran == SHAPES
    assert (done.seconds, done.shapes, done.left_out) == (3.0, 3, 0)


def test_a_device_gets_the_batch_limits() -> None:
    device = SlowDevice()
    warm_up(device, _limits(100, size=1), lambda: device.now)
    assert device.ran == SHAPES[:2]


@pytest.mark.parametrize(("seconds", "run"), [(0.0, 1), (0.5, 1), (1.5, 2), (3.0, 3)])
def test_only_the_first_shape_is_started_after_the_limit(seconds: float, run: int) -> None:
    device = SlowDevice()
    done = warm_up(device, _limits(seconds), lambda: device.now)
    assert (done.shapes, done.left_out) == (run, len(SHAPES) - run)


def test_a_batch_that_does_not_fit_is_left_out_and_a_single_image_is_an_error() -> None:
    device = SlowDevice(too_many=2)
    done = warm_up(device, _limits(100), lambda: device.now)
    assert (done.shapes, done.left_out) == (2, 1)
    with pytest.raises(OutOfDeviceMemory):
        warm_up(SlowDevice(too_many=1), _limits(100))


def test_the_limit_follows_the_device_unless_it_is_set() -> None:
    cpu, gpu = SlowDevice(name="cpu"), SlowDevice(name="cuda:0")
    assert _limits(None).seconds_on(cpu) == CPU_LIMIT_SECONDS
    assert _limits(None).seconds_on(gpu) == GPU_LIMIT_SECONDS
    assert _limits(7.0).seconds_on(cpu) == _limits(7.0).seconds_on(gpu) == 7.0


def test_the_fake_device_needs_no_warm_up() -> None:
    assert warm_up(FakeDevice(FakeDeviceSpec(base_ms=60_000)), _limits(None)).shapes == 0


def test_a_cpu_warms_single_images_of_every_bucket(tmp_path: Path) -> None:
    write_small(tmp_path / "small.safetensors")
    device = TorchDevice(tmp_path / "small.safetensors", "cpu", threads=1)
    buckets = reachable_buckets(SMALL.shortest_side, SMALL.longest_side, SMALL.bucket_stride)
    shapes = device.shapes_to_warm(8, 8_000_000)
    assert shapes == [BatchShape(bucket, 1) for bucket in buckets]
    done = warm_up(device, _limits(0.0))
    assert (done.shapes, done.left_out) == (1, len(buckets) - 1)


def test_a_device_that_runs_batches_whole_warms_every_batch_size_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path / "small.safetensors")
    device = TorchDevice(tmp_path / "small.safetensors", "cpu", threads=1)
    monkeypatch.setattr(type(device._predictor), "runs_batches_whole", property(lambda _: True))
    shapes = device.shapes_to_warm(3, 2 * 384 * 512)
    assert BatchShape((384, 512), 2) in shapes
    assert BatchShape((384, 512), 3) not in shapes
    assert BatchShape((128, 512), 3) in shapes
    assert [shape.images for shape in shapes] == sorted(shape.images for shape in shapes)
