"""`TorchDevice`, with a small network of random weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.geometry import padded_size
from model.images.decode import ImageLimits, decode_image
from service.build import open_detector
from service.engine import torch_device
from service.engine.device import OutOfDeviceMemory
from service.engine.load import load_predictor, pick_device
from service.engine.torch_device import TorchDevice
from service.types import DetectOptions
from tests.support.fake_service import quiet_settings
from tests.support.images import encode_png
from tests.support.small_weights import SMALL

pytestmark = pytest.mark.usefixtures("threads_as_before")

SIZE = (384, 512)
SAMPLES = Path(__file__).resolve().parents[3] / "service" / "rest" / "static" / "samples"


def _image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def test_a_device_reports_its_implementation(weights: Path) -> None:
    device = TorchDevice(weights, "cpu", threads=1)
    assert (device.name, device.model.name, torch.get_num_threads()) == ("cpu", "small", 1)
    assert device.implementations["kernel"] in {"cpu", "reference"}
    assert not device.is_broken(RuntimeError("anything"))


def test_gpu_kernels_that_do_not_work_are_reported(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = TorchDevice(weights, "cpu", threads=1)
    assert "kernel_failures" not in device.implementations
    reasons = {"plain float16": "NVRTC refused it", "plain float32": "no memory for it"}
    monkeypatch.setattr(torch_device, "kernel_failures", lambda _: reasons)
    monkeypatch.setattr(torch_device, "implementation_name", lambda _: "cuda+reference")
    facts = device.implementations
    assert facts["kernel"] == "cuda+reference"
    assert facts["kernel_failures"] == (
        "plain float16: NVRTC refused it; plain float32: no memory for it"
    )


def test_detections_are_those_of_the_predictor(weights: Path) -> None:
    device = TorchDevice(weights, "cpu", threads=1)
    predictor, _ = load_predictor(weights, "cpu", threads=1)
    padded = padded_size(*SIZE, SMALL.bucket_stride)
    images = [_image(1), _image(2)]
    result = device.run(images, padded, [(768, 1024), SIZE])
    expected = predictor.predict(images, padded, [(768, 1024), SIZE])
    assert result.forward_ms > 0
    for found, wanted in zip(result.detections, expected, strict=True):
        np.testing.assert_array_equal(found.boxes_xyxy, wanted.boxes_xyxy)


def test_nothing_is_copied_if_the_host_is_the_device(weights: Path) -> None:
    result = TorchDevice(weights, "cpu", threads=1).run([_image(1)], (384, 512), [SIZE])
    assert result.copy_ms == 0.0
    assert result.assemble_ms > 0


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_copy_to_a_gpu_has_its_own_time(weights: Path) -> None:
    result = TorchDevice(weights, "cuda", threads=1).run([_image(1)], (384, 512), [SIZE])
    assert result.copy_ms > 0
    assert result.assemble_ms > 0
    assert result.forward_ms > 0


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "forward",
    [
        lambda *_: _fail(MemoryError()),
        lambda *_: _fail(torch.OutOfMemoryError("out of memory")),
        lambda *_: torch.empty(1 << 55),  # more than any machine has
    ],
    ids=["python", "gpu", "cpu"],
)
def test_memory_that_ran_out_is_reported_as_such(
    weights: Path, monkeypatch: pytest.MonkeyPatch, forward: Callable[..., object]
) -> None:
    device = TorchDevice(weights, "cpu", threads=1)
    monkeypatch.setattr(device._predictor, "forward", forward)
    with pytest.raises(OutOfDeviceMemory):
        device.run([_image(1)], (384, 512), [SIZE])


def test_other_failures_are_raised_unchanged(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = TorchDevice(weights, "cpu", threads=1)
    monkeypatch.setattr(device._predictor, "forward", lambda *_: _fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        device.run([_image(1)], (384, 512), [SIZE])


def test_a_gpu_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(RuntimeError, match="device=cuda:1"):
        pick_device("cuda:1")


@pytest.mark.slow
async def test_the_default_model_has_the_same_result_alone_and_among_others() -> None:
    settings = quiet_settings(model="default", device="cpu", max_wait_ms=200)
    images = [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))]
    everything = DetectOptions(threshold=0.0)
    async with open_detector(settings) as detector:
        alone = [await detector.detect(data, everything, request_id="r") for data in images]
        together = await asyncio.gather(
            *(detector.detect(data, everything, request_id="r") for data in images * 3)
        )
    assert len(together) == 3 * len(alone) > 0
    for result, expected in zip(together, alone * 3, strict=True):
        assert len(expected.detections) > 0
        np.testing.assert_array_equal(result.detections.scores, expected.detections.scores)
        np.testing.assert_array_equal(result.detections.boxes_xyxy, expected.detections.boxes_xyxy)


async def test_the_service_has_the_results_of_the_model(weights: Path) -> None:
    settings = quiet_settings(model=str(weights), device="cpu", engine_threads=1, max_wait_ms=1000)
    images = [encode_png(_image(seed)) for seed in range(3)]
    everything = DetectOptions(threshold=0.0)
    async with open_detector(settings) as detector:
        results = await asyncio.gather(
            *(detector.detect(data, everything, request_id="r") for data in images)
        )
        assert detector.kernel in {"cpu", "reference"}
    predictor, info = load_predictor(weights, "cpu", threads=1)
    limits = ImageLimits(10**9, 10**9)
    for data, result in zip(images, results, strict=True):
        decoded = decode_image(data, info.config, limits)
        height, width = decoded.pixels.shape[:2]
        padded = padded_size(height, width, info.config.bucket_stride)
        (alone,) = predictor.predict([decoded.pixels], padded, [decoded.original_size])
        assert result.model_version == info.version
        np.testing.assert_allclose(result.detections.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(result.detections.boxes_xyxy, alone.boxes_xyxy, atol=0.05)
