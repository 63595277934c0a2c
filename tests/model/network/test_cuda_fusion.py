"""The fused products of GPUs, with their operators replaced by formulas on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from model import VARIANTS, build_detector
from model.network import cuda_fusion, onednn
from model.network.backbone.base import DetectorBackbone
from model.network.convolution import FoldedConvolution, FrozenBatchNorm, fold
from model.network.inference import prepare_for_inference
from model.network.linear import Linear
from service.engine.gpu_checks import check_fused_products
from tests.support import fused_operators
from tests.support.fused_operators import as_on_a_gpu

BACKBONES = ("resnet18", "resnet50", "efficientnet_lite0", "swin_tiny")
SMALL = replace(VARIANTS["lite-dino-r18-small"], num_queries=20, encoder_layers=2, decoder_layers=2)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    cuda_fusion._State.enabled = frozenset(cuda_fusion.OPERATORS)


def _randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics of every normalisation, so that a forgotten bias shows."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, FrozenBatchNorm):
            for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5)):
                values = low + torch.rand(part.bias.shape, generator=generator)
                getattr(part, name).data.copy_(values)
    return module.eval()


def _images(*, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 64, 96, generator=generator).to(dtype)


def _converted(backbone: nn.Module) -> nn.Module:
    """The inference form of a backbone alone."""
    detector = build_detector(SMALL)
    detector.backbone = nn.ModuleList([backbone])
    return prepare_for_inference(detector).backbone[0]  # type: ignore[return-value]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_fused_backbone_gives_the_maps_of_the_plain_one(name: str) -> None:
    torch.manual_seed(0)
    backbone = _randomised(DetectorBackbone(name))
    with torch.inference_mode():
        expected = backbone(_images())
        with as_on_a_gpu() as operators:
            fused = _converted(backbone)
            maps = fused(_images())
            with cuda_fusion.disabled():
                calls = len(operators.calls)
                in_passes = fused(_images())
                assert len(operators.calls) == calls
    for ours, passes, theirs in zip(maps, in_passes, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, atol=1e-4 * scale, rtol=0)
        torch.testing.assert_close(passes, theirs, atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 20), ("resnet50", 53)])
def test_residual_networks_are_fused_throughout(name: str, convolutions: int) -> None:
    with as_on_a_gpu() as operators, torch.inference_mode():
        fused = _converted(DetectorBackbone(name))
        fused(_images())
        layers = [layer for layer in fused.modules() if isinstance(layer, FoldedConvolution)]
    assert len(layers) == convolutions
    with_relu = [call for call in operators.calls if call == "cudnn_convolution_relu"]
    with_sum = [call for call in operators.calls if call == "cudnn_convolution_add_relu"]
    blocks = {"resnet18": 8, "resnet50": 16}[name]
    assert len(with_sum) == blocks  # the last one of each
    assert len(with_relu) == {"resnet18": 1 + 8, "resnet50": 1 + 16}[name]  # the stem, the 3x3 ones
    # Strided shortcuts have no activation; their bias is added by the block's last convolution.
    assert sum(not layer.has_bias for layer in layers) == 3


def test_a_whole_detector_gives_its_plain_output() -> None:
    torch.manual_seed(0)
    detector = build_detector(SMALL).eval()
    images, mask = torch.randn(2, 3, 128, 128), torch.zeros(2, 128, 128, dtype=torch.bool)
    mask[1, :, 96:] = True
    with torch.inference_mode():
        expected = detector(images, mask)
        with as_on_a_gpu():
            output = prepare_for_inference(detector)(images, mask)
    torch.testing.assert_close(output.memory, expected.memory, atol=2e-4, rtol=0)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes, atol=2e-3, rtol=0)


@pytest.mark.parametrize("activation", get_args(onednn.Activation))
@pytest.mark.parametrize("adds", [False, True])
def test_linear_layers_of_any_rank(activation: onednn.Activation, adds: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(8, 6)
    x = torch.randn(3, 10, 8)[:, 2:7] * 4
    add = torch.randn(3, 5, 6) if adds else None
    with torch.inference_mode():
        expected = layer(x, add, activation=activation)
        with as_on_a_gpu():
            found = layer.inference_form(torch.float32)(x, add, activation=activation)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()


def test_a_convolution_that_cudnn_lacks_runs_in_passes_and_the_others_stay_fused() -> None:
    def refuse_three_channels(x: Tensor, *rest: object) -> Tensor:
        if x.shape[1] == 3:
            raise RuntimeError("unable to find an engine to execute this computation")
        return fused_operators.convolution_relu(x, *rest)  # type: ignore[arg-type]

    backbone = _randomised(DetectorBackbone("resnet18"))
    with (
        torch.inference_mode(),
        as_on_a_gpu(cudnn_convolution_relu=refuse_three_channels) as operators,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        fused = _converted(backbone)
        maps = [fused(_images()) for _ in range(2)]
        expected = backbone(_images())
    (warning,) = [str(one.message) for one in caught]
    assert "(64, 3, 7, 7)" in warning and "unable to find an engine" in warning
    assert operators.calls.count("cudnn_convolution_relu") == 1 + 8 + 8
    torch.testing.assert_close(maps[1][0], expected[0], atol=1e-3, rtol=1e-3)


def test_missing_memory_is_no_reason_to_stop_fusing() -> None:
    def no_memory(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("2 GiB short")

    with torch.inference_mode(), as_on_a_gpu(cudnn_convolution_relu=no_memory):
        fused = _converted(DetectorBackbone("resnet18"))
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                fused(_images())


def _leaves_what_was_there(x: Tensor, weight: Tensor, bias: Tensor, *geometry: object) -> Tensor:
    """A kernel that adds 0 * what its result contained; a maximum drops NaN."""
    result = fused_operators.convolution_relu(x, weight, bias, *geometry)
    result[:, ::3] = 0.0
    return result


def _forgets_the_sum(
    x: Tensor, weight: Tensor, add: Tensor, alpha: float, bias: Tensor, *geometry: object
) -> Tensor:
    del add, alpha
    return fused_operators.convolution_relu(x, weight, bias, *geometry)


@pytest.mark.parametrize(
    ("formulas", "wrong"),
    [
        ({}, set()),
        ({"cudnn_convolution_relu": _leaves_what_was_there}, {"cudnn_convolution_relu"}),
        ({"cudnn_convolution_add_relu": _forgets_the_sum}, {"cudnn_convolution_add_relu"}),
    ],
    ids=["right", "relu", "sum"],
)
def test_operators_with_wrong_results_are_disabled_and_the_others_stay(
    formulas: dict[str, fused_operators.Formula], wrong: set[str]
) -> None:
    torch.manual_seed(0)
    detector = build_detector(SMALL).eval()
    with as_on_a_gpu(**formulas) as operators, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = prepare_for_inference(detector)
        check_fused_products(network, torch.device("cpu"))
        operators.calls.clear()
        with torch.inference_mode():
            network.backbone[0](_images())
    assert cuda_fusion.enabled() == set(cuda_fusion.OPERATORS) - wrong
    assert set(operators.calls) == {"cudnn_convolution_relu", "cudnn_convolution_add_relu"} - wrong
    assert len(caught) == len(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_is_fused_for_gpus_on_a_cpu(dtype: torch.dtype) -> None:
    device = torch.device("cpu")
    assert not cuda_fusion.can_convolve(device, dtype)
    assert not cuda_fusion.can_multiply(device, dtype)
    assert not onednn.is_available(device, torch.float16)


def test_cuda_gets_fused_convolutions_in_16_bits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    device = torch.device("cuda:1")
    can = {dtype: cuda_fusion.can_convolve(device, dtype) for dtype in cuda_fusion._MULTIPLIED}
    assert can == {torch.float16: True, torch.bfloat16: True, torch.float32: False}
    assert cuda_fusion.can_multiply(device, torch.float32)
    monkeypatch.delattr(torch, "cudnn_convolution_add_relu")
    assert not cuda_fusion.can_convolve(device, torch.float16)


def test_float16_convolutions_round_once() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    x, add = torch.randn(2, 1, 16, 9, 9, dtype=torch.float16).unbind(0)
    norm = _randomised(FrozenBatchNorm(16))
    with torch.inference_mode(), as_on_a_gpu():
        folded = fold(conv, norm, torch.float16, adds=True)
        found = folded(x, add, activation="relu")
        exact = fold(conv, norm, torch.float64, adds=True)
        with cuda_fusion.disabled():
            expected = exact(x.double(), add.double(), activation="relu")
    weights_rounded = 2e-3 * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, atol=weights_rounded, rtol=1e-3)
