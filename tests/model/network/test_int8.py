"""Convolutions in int8, their ranges, and the default model with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import DeviceError
from model.geometry import padded_size
from model.images.decode import ImageLimits, decode_image
from model.network import int8
from model.network.backbone.base import build_backbone
from model.network.calibration import INPUT, find_ranges, trace, unpacked_form
from model.network.convolution import FoldedConvolution
from model.network.inference import prepare_for_inference
from model.network.int8 import (
    Int8Backbone,
    Int8Convolution,
    Int8MaxPool,
    QuantizingConvolution,
    prepare_in_int8,
)
from model.network.int8_maps import Quantization
from model.network.precision import resolve_precision
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from model.weights.info import DEFAULT_MODEL_PATH
from tests.support.repository import ROOT

pytestmark = pytest.mark.skipif(not int8.is_available(), reason="no oneDNN here")


def _ranges(low: float, high: float, channels: int) -> Tensor:
    """Of channels with ranges of different widths."""
    widths = torch.linspace(0.2, 1.0, channels)
    return torch.stack((low * widths, high * widths, (low + high) / 2 * widths))


def _quantization(low: float, high: float, channels: int, *, padded: bool = True) -> Quantization:
    return Quantization(_ranges(low, high, channels), padded=padded)


def _quantized(how: Quantization, x: Tensor) -> Tensor:
    steps = (x - how.offset[:, None, None]) / how.scale[:, None, None] + how.zero_point
    quantized: Tensor = steps.round().clamp(0, 255).to(torch.uint8)
    return quantized


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def _map(*shape: int) -> Tensor:
    q = torch.randint(0, 256, shape, dtype=torch.uint8)
    return q.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("low, high", [(0.0, 0.0), (0.0, 5.0), (-5.0, 2.0), (-5.0, 0.0)])
def test_the_numbers_of_a_range_and_zero_have_their_places(
    low: float, high: float, padded: bool
) -> None:
    how = _quantization(low, high, 4, padded=padded)
    for values in _ranges(low, high, 4)[:2]:
        x = values.view(1, -1, 1, 1)
        assert torch.allclose(how.dequantize(_quantized(how, x)), x, atol=float(how.scale.max()))
    zeros = torch.zeros(1, 4, 1, 1)
    if padded:  # with this number
        assert torch.equal(how.dequantize(_quantized(how, zeros)), zeros)


@pytest.mark.parametrize("low, high", [(-5.0, 2.0), (-1.0, 7.0)])
def test_maps_that_are_not_padded_use_all_steps(low: float, high: float) -> None:
    how = _quantization(low, high, 4, padded=False)
    lows, highs = _ranges(low, high, 4)[:2]
    assert torch.allclose(how.scale, (highs - lows) / 255)
    assert (_quantized(how, lows.view(1, -1, 1, 1)) == 0).all()
    assert (_quantized(how, highs.view(1, -1, 1, 1)) == 255).all()


CONVOLUTIONS = {
    "1x1": (16, 24, 1, 1, 1),
    "3x3": (16, 24, 3, 1, 1),
    "3x3, stride 2": (16, 24, 3, 2, 1),
    "7x7 of images": (3, 16, 7, 2, 1),
    "depthwise": (16, 16, 3, 1, 16),
    "depthwise 5x5, stride 2": (16, 16, 5, 2, 16),
}


def _convolution(kind: str) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    inputs, outputs, size, stride, groups = CONVOLUTIONS[kind]
    weight = torch.randn(outputs, inputs // groups, size, size)
    weight *= 0.5 / weight.flatten(1).norm(dim=1)[:, None, None, None]
    weight[0] *= 100  # each channel has a scale of its own
    bias = torch.randn(outputs) * 0.1
    return weight, bias, ([size // 2] * 2, [stride] * 2, [1, 1], groups)


def _exact(x: Tensor, weight: Tensor, bias: Tensor, geometry: tuple[Any, ...]) -> Tensor:
    padding, stride, dilation, groups = geometry
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _errors(found: Tensor, exact: Tensor, how: Quantization) -> Tensor:
    """Of numbers in the range, in steps of each channel; the first channel's weights are large."""
    low = how.offset - how.zero_point * how.scale
    high = how.offset + (255 - how.zero_point) * how.scale
    inside = exact.maximum(low[:, None, None]).minimum(high[:, None, None])
    errors: Tensor = (how.dequantize(found) - inside) / how.scale[:, None, None]
    return errors[:, 1:].abs()


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_is_the_exact_one_up_to_rounding(
    kind: str, vnni: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not vnni:
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    inputs, outputs, *_ = CONVOLUTIONS[kind]
    convolution = _convolution(kind)
    padded = any(convolution[2][0])
    source = _quantization(-1.0, 3.0, inputs, padded=padded)
    result = _quantization(-4.0, 4.0, outputs, padded=False)
    x = _map(2, inputs, 11, 13)
    found = Int8Convolution(*convolution, source, result)(x)
    exact = _exact(source.dequantize(x), *convolution)
    assert found.dtype == torch.uint8 and found.shape == exact.shape
    errors = _errors(found, exact, result)
    assert errors.max() <= (5 if vnni else 10)
    assert errors.mean() <= (0.6 if vnni else 1.0)


@pytest.mark.parametrize("low", [-4.0, 0.0], ids=["signed", "ReLU"])
@pytest.mark.parametrize("low_of_added", [-4.0, 0.0], ids=["added signed", "added ReLU"])
def test_a_map_is_added(low: float, low_of_added: float) -> None:
    convolution = _convolution("3x3")
    source, result = _quantization(0.0, 3.0, 16), _quantization(low, 4.0, 24, padded=False)
    added = _quantization(low_of_added, 4.0, 24, padded=False)
    added.scale = result.scale
    x, add = _map(1, 16, 9, 9), _map(1, 24, 9, 9)
    exact = _exact(source.dequantize(x), *convolution) + added.dequantize(add)
    found = Int8Convolution(*convolution, source, result, added)(x, add.clone())
    assert _errors(found, exact, result).max() <= 9


@pytest.mark.parametrize("activation, high", [("relu", 2.0), ("relu6", 0.5)])
def test_the_range_of_the_result_is_the_activation(activation: str, high: float) -> None:
    convolution = _convolution("3x3")
    source, result = _quantization(-1.0, 1.0, 16), _quantization(0.0, high, 24)
    x = _map(1, 16, 9, 9)
    found = Int8Convolution(*convolution, source, result)(x, activation=activation)
    exact = _exact(source.dequantize(x), *convolution)
    assert _errors(found, exact, result).mean() <= 3
    assert found.min() == 0 and found.max() == 255


def test_rounding_the_weights_does_not_move_the_mean() -> None:
    weight = torch.full((4, 16, 1, 1), 0.3 / 127)
    weight[:, 0] = 1.0  # so that the others are rounded to zero
    source, result = _quantization(0.0, 2.0, 16), _quantization(0.0, 8.0, 4)
    x = _quantized(source, source.mean.float()[None, :, None, None].expand(1, -1, 8, 8))
    x = x.contiguous(memory_format=torch.channels_last)
    convolution = (weight * 2, torch.zeros(4), ([0, 0], [1, 1], [1, 1], 1))
    found = Int8Convolution(*convolution, source, result)(x)
    assert _errors(found, _exact(source.dequantize(x), *convolution), result).max() <= 0.6


@pytest.mark.parametrize("low, high, padded", [(0.0, 2.0, True), (-4.0, 3.0, False)])
@pytest.mark.parametrize("kind", ["7x7 of images", "depthwise"])
def test_the_last_convolution_in_float32_writes_uint8(
    kind: str, low: float, high: float, padded: bool
) -> None:
    convolution = _convolution(kind)
    inputs, _, size, stride, groups = CONVOLUTIONS[kind]
    layer = nn.Conv2d(inputs, 16, size, stride, size // 2, groups=groups)
    plain = FoldedConvolution(layer, *convolution[:2], torch.float32, adds=True)
    result = _quantization(low, high, 16, padded=padded)
    images = torch.randn(2, inputs, 21, 30).contiguous(memory_format=torch.channels_last)
    found = QuantizingConvolution(plain, result)(images)
    assert _errors(found, _exact(images, *convolution), result).max() <= 0.51


@pytest.mark.parametrize("height, width", [(5, 7), (6, 8), (40, 33), (1, 1), (2, 3)])
def test_a_maximum_is_that_of_the_floats(height: int, width: int) -> None:
    plain = nn.MaxPool2d(3, 2, padding=1)
    x = _map(2, 8, height, width)
    found = Int8MaxPool(plain)(x)
    assert torch.equal(found.float(), plain(x.float()))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_backbone_in_int8_has_nearly_the_maps_of_float32(name: str) -> None:
    body = build_backbone(name).eval()
    images = torch.randn(1, 3, 64, 96)
    found = Int8Backbone(body, find_ranges(body, [images]))(images)
    for mine, exact in zip(found, body(images), strict=True):
        assert mine.dtype == torch.float32 and mine.shape == exact.shape
        assert (mine - exact).square().mean().sqrt() <= 0.05 * exact.std()


@pytest.mark.parametrize(
    "name, in_float32, quantizing",
    [("resnet18", [], "conv1"), ("efficientnet_lite0", ["conv_stem"], "blocks.0.depthwise_conv")],
)
def test_the_first_convolutions_stay_float32(
    name: str, in_float32: list[str], quantizing: str
) -> None:
    body = build_backbone(name).eval()
    found = Int8Backbone(body, find_ranges(body, [torch.randn(1, 3, 64, 64)])).body
    kinds = {each: type(module) for each, module in found.named_modules()}
    assert [each for each, kind in kinds.items() if kind is FoldedConvolution] == in_float32
    assert [each for each, kind in kinds.items() if kind is QuantizingConvolution] == [quantizing]


def test_the_steps_of_a_residual_network_name_their_maps() -> None:
    steps, taps = trace(unpacked_form(build_backbone("resnet18")))
    by_name = {step.name: step for step in steps}
    assert by_name["conv1"].source == INPUT
    assert by_name["pool"].result == "conv1"
    assert by_name["layer1.0.conv1"].source == "conv1"
    assert by_name["layer1.0.conv2"].add == "conv1"
    assert by_name["layer2.0.conv2"].add == "layer2.0.downsample"
    assert taps == ["layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"]


def test_what_int8_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = build_backbone("resnet18")
    with pytest.raises(DeviceError, match="no range of the map"):
        Int8Backbone(body, {"conv1": _ranges(0.0, 1.0, 65)})
    with pytest.raises(DeviceError, match="not SwinTiny"):
        find_ranges(build_backbone("swin_tiny"), [torch.zeros(1, 3, 64, 64)])
    with pytest.raises(ValueError, match="no images"):
        find_ranges(body, [])
    with pytest.raises(ValueError, match="not finite"):
        find_ranges(body, [torch.full((1, 3, 64, 64), torch.nan)])
    with pytest.raises(DeviceError, match="int8 is for CPUs"):
        resolve_precision("int8", "cuda")
    monkeypatch.setattr(int8, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no int8"):
        Int8Backbone(body, {})


def test_the_default_model_finds_the_same_boxes_in_int8() -> None:
    detector, info = load_detector(DEFAULT_MODEL_PATH)
    data = (ROOT / "docs/samples/codes.jpg").read_bytes()
    image = decode_image(data, info.config, ImageLimits(10**8, 10**8))
    height, width = image.pixels.shape[:2]
    padded = padded_size(height, width, info.config.bucket_stride)
    exact = Predictor(prepare_for_inference(detector), info.config)
    batch, _mask = exact.assemble([image.pixels], padded)
    in_int8 = prepare_in_int8(detector, find_ranges(detector.body, [batch]))
    rounded = Predictor(in_int8, info.config)
    assert (exact.precision, rounded.precision) == ("fp32", "int8")
    [here], [there] = (
        each.predict([image.pixels], padded, [image.original_size]) for each in (exact, rounded)
    )
    shown = np.flatnonzero(here.scores >= info.score_threshold)
    nearest = [
        int(np.abs(there.boxes_xyxy[:20] - here.boxes_xyxy[each]).max(axis=1).argmin())
        for each in shown
    ]
    distances = np.abs(there.boxes_xyxy[nearest] - here.boxes_xyxy[shown])
    assert len(shown) == 5 and distances.max() < 30  # of 1280 pixels
    assert (there.labels[nearest] == here.labels[shown]).sum() >= 4
