"""`GpuDevice`, with a stand-in for the GPU, and on a real one if there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import VARIANTS, ModelConfig
from model.geometry import padded_size, reachable_buckets, usual_buckets
from model.predictor import Predictor
from service.engine.device import BatchShape, OutOfDeviceMemory, OverlappingDevice
from service.engine.gpu_device import GpuDevice, GpuLimits, open_torch_device
from service.engine.gpu_pipeline import PipelineLimits
from service.engine.load import load_predictor
from service.engine.torch_device import TorchDevice
from service.engine.warm_up import WarmUpLimits, warm_up
from service.ipc.slots import largest_bucket_pixels
from tests.support.small_weights import SMALL
from tests.support.standin_card import StandInCard

pytestmark = pytest.mark.usefixtures("threads_as_before")

LIMITS = GpuLimits(max_batch_size=2, max_batch_pixels=2 * 384 * 512, max_cuda_graphs=512)
SIZE = (384, 512)
PADDED = padded_size(*SIZE, SMALL.bucket_stride)


@pytest.fixture
def card() -> StandInCard:
    return StandInCard()


@pytest.fixture
def device(weights: Path, card: StandInCard, monkeypatch: pytest.MonkeyPatch) -> GpuDevice:
    monkeypatch.setattr(Predictor, "runs_batches_whole", property(lambda _: True))
    return GpuDevice(weights, "cpu", 1, "auto", LIMITS, open_card=lambda _: card)


def _images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8))


def test_it_overlaps_and_a_cpu_does_not(device: GpuDevice, weights: Path) -> None:
    assert isinstance(device, OverlappingDevice)
    assert not isinstance(TorchDevice(weights, "cpu", 1), OverlappingDevice)
    assert type(open_torch_device(weights, "cpu", 1, "auto", LIMITS)) is TorchDevice


def test_its_detections_are_those_of_a_plain_device(device: GpuDevice, weights: Path) -> None:
    images, sizes = _images(2), [(768, 1024), SIZE]
    found = device.run(images, PADDED, sizes).detections
    expected = load_predictor(weights, "cpu", 1)[0].predict(images, PADDED, sizes)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_the_largest_batch_is_warmed_first_and_then_full_batches_of_usual_buckets(
    weights: Path, card: StandInCard
) -> None:
    limits = GpuLimits(max_batch_size=8, max_batch_pixels=7 * 384 * 512, max_cuda_graphs=512)
    device = GpuDevice(weights, "cpu", 1, "auto", limits, open_card=lambda _: card)
    shapes = device.shapes_to_warm(8, limits.max_batch_pixels)
    assert len(shapes) == len(set(shapes))
    assert shapes[0].padded_pixels == max(shape.padded_pixels for shape in shapes)
    assert {shape.images for shape in shapes if shape.padded == (384, 512)} == {1, 2, 4, 7}
    assert {shape.images for shape in shapes if shape.padded == (384, 384)} == {1, 2, 4, 8}
    rule = (SMALL.shortest_side, SMALL.longest_side, SMALL.bucket_stride)
    assert {shape.padded for shape in shapes} == set(reachable_buckets(*rule))
    usual = usual_buckets(*rule)
    first = shapes[1 : 4 * len(usual)]
    assert {shape.padded for shape in first} == set(usual)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=str)
def test_few_shapes_are_warmed(config: ModelConfig) -> None:
    limits = PipelineLimits(8, max(8_000_000, largest_bucket_pixels(config)))
    buckets = reachable_buckets(config.shortest_side, config.longest_side, config.bucket_stride)
    sizes = [limits.batch_sizes(bucket) for bucket in buckets]
    assert max(map(len, sizes)) == 4
    assert sum(map(len, sizes)) <= 4 * len(buckets) <= 4 * 55


def test_batches_are_filled_up_to_a_recorded_size(
    weights: Path, card: StandInCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "runs_batches_whole", property(lambda _: True))
    limits = GpuLimits(max_batch_size=8, max_batch_pixels=8 * 384 * 512, max_cuda_graphs=512)
    device = GpuDevice(weights, "cpu", 1, "auto", limits, open_card=lambda _: card)
    for images in (4, 1):
        device.run(_images(images), PADDED, [SIZE] * images)
        device.record(BatchShape(PADDED, images))
    alone = [device.run([image], PADDED, [SIZE]).detections[0] for image in _images(3)]
    replays = card.replays
    found = device.run(_images(3), PADDED, [SIZE] * 3).detections
    assert (len(found), card.replays) == (3, replays + 1)
    for ours, theirs in zip(found, alone, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_the_warm_up_records_what_it_runs_and_batches_replay_it(
    device: GpuDevice, card: StandInCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [BatchShape(PADDED, 2), BatchShape(PADDED, 1), BatchShape((128, 512), 1)]
    monkeypatch.setattr(GpuDevice, "shapes_to_warm", lambda *_: shapes)
    assert device.implementations["cuda_graphs"] == "0"
    assert warm_up(device, WarmUpLimits(600, 2, LIMITS.max_batch_pixels)).shapes == 3
    assert device.implementations["cuda_graphs"] == "3"
    replays = card.replays
    device.run(_images(2), PADDED, [SIZE, SIZE])
    assert card.replays == replays + 1
    device.run([_images(1)[0][:96, :256]], (128, 256), [(96, 256)])  # a shape without a graph
    assert card.replays == replays + 1


def test_a_gpu_that_cannot_record_serves(
    device: GpuDevice, card: StandInCard, caplog: pytest.LogCaptureFixture
) -> None:
    card.record_error = RuntimeError("operation not permitted when stream is capturing")
    result = device.run(_images(1), PADDED, [SIZE])
    device.record(BatchShape(PADDED, 1))
    device.record(BatchShape(PADDED, 1))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    again = device.run(_images(1), PADDED, [SIZE])
    np.testing.assert_array_equal(again.detections[0].scores, result.detections[0].scores)


def test_memory_that_ran_out_is_reported_and_frees_the_buffers(
    device: GpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(device._predictor, "detect", refuse)
        for _ in range(3):
            with pytest.raises(OutOfDeviceMemory):
                device.run(_images(1), PADDED, [SIZE])
    assert len(device.run(_images(1), PADDED, [SIZE]).detections) == 1


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def gpu(weights: Path, request: pytest.FixtureRequest) -> GpuDevice:
    return GpuDevice(weights, "cuda", 1, request.param, LIMITS)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.requires_cuda
@needs_gpu
def test_a_replay_on_a_gpu_equals_its_launches(gpu: GpuDevice) -> None:
    images = _images(2)
    launched = gpu.run(images, PADDED, [SIZE, SIZE])
    gpu.record(BatchShape(PADDED, 2))
    assert int(gpu.implementations["cuda_graphs"]) >= 1
    replayed = gpu.run(images, PADDED, [SIZE, SIZE])
    for ours, theirs in zip(replayed.detections, launched.detections, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)


@pytest.mark.requires_cuda
@needs_gpu
def test_overlapping_batches_on_a_gpu_have_the_results_of_batches_alone(gpu: GpuDevice) -> None:
    images = _images(6)
    alone = [gpu.run([image], PADDED, [SIZE]).detections[0] for image in images]
    gpu.record(BatchShape(PADDED, 1))
    in_flight, found = None, []
    for image in images:
        following = gpu.begin([image], PADDED, [SIZE])
        if in_flight is not None:
            found.append(in_flight.finish().detections[0])
        in_flight = following
    assert in_flight is not None
    found.append(in_flight.finish().detections[0])
    for ours, theirs in zip(found, alone, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)


@pytest.mark.requires_cuda
@needs_gpu
def test_the_copy_to_a_gpu_has_its_own_time(gpu: GpuDevice) -> None:
    result = gpu.run(_images(1), PADDED, [SIZE])
    assert min(result.copy_ms, result.assemble_ms, result.forward_ms) > 0
