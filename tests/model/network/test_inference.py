"""The inference form has the output of the detector, for every reference case and architecture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import ModelConfig
from model.geometry import level_shapes
from model.network import onednn
from model.network.backbone import BACKBONES
from model.network.backbone.base import Backbone, Maps
from model.network.convolution import WinogradConvolution
from model.network.detector import LiteDETR
from model.network.geometry import image_tokens
from model.network.inference import prepare_for_inference
from model.network.outputs import DetectorOutput
from model.network.precision import resolve_precision
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model
from tests.model.network.test_detector import seeded, tiny
from tests.support import golden_case, reference_cases

# Root-mean-square differences of memory (whose deviation is about 1), logits and boxes. Narrow
# networks of random weights amplify rounding; those of the reference cases are held to 1e-4.
TOLERANCES = {torch.float32: (1e-4, 1e-3, 1e-4), torch.bfloat16: (0.1, 0.5, 0.05)}
_FIELDS = ("memory", "pred_logits", "pred_boxes")


@pytest.fixture
def _products(products: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """How linear layers multiply: as on a CPU, or as on every other device."""
    if products == "torch":
        monkeypatch.setattr(onednn, "is_available", lambda *_: False)
    elif not onednn.is_available(torch.device("cpu"), dtype):
        pytest.skip(f"oneDNN has no products of {dtype} here")


def batch_of_sizes(*sizes: tuple[int, int], padded: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.zeros(len(sizes), 3, *padded)
    mask = torch.ones(len(sizes), *padded, dtype=torch.bool)
    for index, (height, width) in enumerate(sizes):
        images[index, :, :height, :width] = torch.randn(3, height, width, generator=generator)
        mask[index, :height, :width] = False
    return images, mask


def _without_padding(output: DetectorOutput, levels: int, mask: Tensor) -> DetectorOutput:
    """A detector's output as that of the inference form: one image's memory has no padding."""
    if len(mask) > 1:
        return output
    height, width = mask.shape[1:]
    kept = image_tokens(mask, level_shapes(height, width, levels))
    return replace(output, memory=output.memory[:, kept])


def assert_alike(detector: LiteDETR, images: Tensor, mask: Tensor, dtype: torch.dtype) -> None:
    """Memory, and, with the same query selection (near ties may swap), logits and boxes."""
    selections: list[Tensor] = []
    select = detector.transformer.select_queries
    detector.transformer.select_queries = lambda best: (  # type: ignore[method-assign]
        selections.append(select(best)) or selections[-1]  # type: ignore[func-returns-value]
    )
    network = prepare_for_inference(detector, dtype)
    network.transformer.select_queries = lambda best: selections[-1]  # type: ignore[method-assign,assignment]
    with torch.inference_mode():
        levels = len(detector.transformer.level_embed)
        expected = _without_padding(detector(images, mask), levels, mask)
        for _ in range(2):  # the second time with cached geometry
            found = network(images, mask)
            assert found.memory.dtype == dtype
            for field, bound in zip(_FIELDS, TOLERANCES[dtype], strict=True):
                difference = getattr(found, field).float() - getattr(expected, field)
                assert difference.square().mean().sqrt() <= bound, field


def _assert_case_alike(name: str, dtype: torch.dtype) -> None:
    case = reference_cases.load_case(name)
    images, mask = reference_cases.batch_of(case.arrays, torch.float32)
    assert_alike(reference_cases.detector_of(name), images, mask, dtype)


@reference_cases.parametrize_cases(only_one_is_fast=True)
def test_every_reference_case_gives_what_its_detector_gives(name: str) -> None:
    _assert_case_alike(name, torch.float32)


@pytest.mark.slow
@reference_cases.parametrize_cases(only_one_is_fast=False, family=True)
def test_every_reference_case_gives_the_same_in_bfloat16(name: str) -> None:
    _assert_case_alike(name, torch.bfloat16)


@reference_cases.parametrize_cases(only_one_is_fast=True)
def test_every_reference_case_is_reproduced(name: str) -> None:
    case = reference_cases.load_case(name)
    images, mask = reference_cases.batch_of(case.arrays, torch.float32)
    with torch.inference_mode():
        network = prepare_for_inference(reference_cases.detector_of(name))
        memory = network(images, mask).memory
    official = torch.from_numpy(case.arrays["memory"])
    torch.testing.assert_close(memory, official, atol=1e-4, rtol=0)


_IS_FAST = ("onednn", torch.float32)
_IS_SLOW = ("torch", torch.bfloat16)  # on processors without it
_FAST_CONFIGS = (
    tiny(),
    tiny(backbone="efficientnet_lite0"),
    tiny(separate_keys=True),
    tiny(interleaved=False, key_aware=False),
    replace(golden_case.CONFIG, num_feature_levels=3, high_level_scales=2),
)
_SLOW_CONFIGS = (
    tiny(key_aware=False),
    tiny(key_aware_decoder=False),
    tiny(same_loc=True),
    tiny(high_level_scales=2),
    tiny(high_level_scales=4),
    tiny(encoder_layers=4, encoder_blocks=2),
    tiny(encoder_points=2),
    tiny(num_feature_levels=5),
    tiny(num_queries=500),
)


def _architectures() -> Iterator[Any]:
    """Every architecture with every way of products; those that are slow twice: of the family."""
    ways = itertools.product(("onednn", "torch"), TOLERANCES)
    for config, (products, dtype) in itertools.product((*_FAST_CONFIGS, *_SLOW_CONFIGS), ways):
        way = (products, dtype)
        slow = min(2, (config not in _FAST_CONFIGS) + (way != _IS_FAST) + (way == _IS_SLOW))
        marks = (pytest.mark.slow, pytest.mark.family)[:slow]
        name = f"{config.name}-{products}-{dtype}"
        yield pytest.param(config, products, dtype, marks=marks, id=name)


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize(("config", "products", "dtype"), list(_architectures()))
def test_every_architecture_has_the_output_of_its_detector(
    config: ModelConfig, dtype: torch.dtype
) -> None:
    images, mask = batch_of_sizes((64, 200), (40, 50), padded=(64, 256))
    assert_alike(seeded(config), images, mask, dtype)
    assert_alike(seeded(config), images[:1], mask[:1], dtype)


@pytest.mark.slow
def test_a_resnet_on_a_larger_map_has_the_output_of_its_detector() -> None:
    """Large enough for Winograd convolutions, with sides that are no multiples of their tiles."""
    network = prepare_for_inference(seeded(tiny(backbone="resnet50")))
    taking = [part for part in network.modules() if isinstance(part, WinogradConvolution)]
    assert len(taking) == 11 or not onednn.is_available(torch.device("cpu"), torch.float32)
    images, mask = batch_of_sizes((250, 500), padded=(264, 520))
    assert_alike(seeded(tiny(backbone="resnet50")), images, mask, torch.float32)
    images, mask = batch_of_sizes((250, 500), (264, 100), padded=(264, 520))
    assert_alike(seeded(tiny(backbone="resnet50")), images, mask, torch.float32)


def test_the_default_model_has_the_output_of_its_detector() -> None:
    detector, _ = load_detector(resolve_model("default"))
    images, mask = batch_of_sizes((200, 256), padded=(256, 256))
    assert_alike(detector, images, mask, torch.float32)


def test_cached_geometry_is_not_used_for_images_of_other_sizes() -> None:
    detector = seeded(tiny())
    network = prepare_for_inference(detector)
    for size in ((64, 96), (50, 96), (64, 90), (64, 96), (10, 10), (1, 1), (63, 1), (50, 96)):
        images, mask = batch_of_sizes(size, padded=(64, 96))
        with torch.inference_mode():
            memory = network(images, mask).memory
            expected = _without_padding(detector(images, mask), 4, mask).memory
            torch.testing.assert_close(memory, expected, atol=1e-4, rtol=1e-4)


def test_the_detector_may_change_afterwards() -> None:
    detector = seeded(tiny())
    images, mask = batch_of_sizes((64, 96), padded=(64, 96))
    network = prepare_for_inference(detector)
    with torch.inference_mode():
        before = network(images, mask).pred_logits.clone()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.zero_()
    with torch.inference_mode():
        np.testing.assert_array_equal(network(images, mask).pred_logits, before)


def test_inputs_are_left_unchanged() -> None:
    images, mask = batch_of_sizes((50, 90), padded=(64, 96))
    copies = images.clone(), mask.clone()
    with torch.inference_mode():
        prepare_for_inference(seeded(tiny()))(images, mask)
    assert torch.equal(images, copies[0]) and torch.equal(mask, copies[1])


class _PlainBackbone(Backbone):
    """A backbone without an inference form of its own."""

    channels = (8, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=8, padding=1)

    def forward(self, images: Tensor) -> Maps:
        finest = self.conv(images)
        return finest, finest[:, :, ::2, ::2], finest[:, :, ::4, ::4]


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_a_backbone_without_an_inference_form_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setitem(BACKBONES, "plain", f"{__name__}:_PlainBackbone")
    images, mask = batch_of_sizes((64, 96), padded=(64, 96))
    assert_alike(seeded(tiny(backbone="plain")), images, mask, dtype)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_has_the_channels_that_it_declares(name: str) -> None:
    detector = seeded(tiny(backbone=name))
    with torch.inference_mode():
        maps = detector.body(torch.zeros(1, 3, 64, 96))
    assert tuple(m.shape[1] for m in maps) == detector.body.channels
    assert [m.shape[2:] for m in maps] == [(8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", ("fp32", torch.float32)),
        ("auto", "cuda:1", ("fp32", torch.float32)),
        ("bf16", "cpu", ("bf16", torch.bfloat16)),
        ("fp16", "cuda", ("fp16", torch.float16)),
    ],
)
def test_a_precision_names_a_type(
    precision: str, device: str, expected: tuple[str, torch.dtype]
) -> None:
    assert resolve_precision(precision, device) == expected


def test_an_unknown_or_unsupported_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="fp8"):
        resolve_precision("fp8", "cpu")
    with pytest.raises(RuntimeError, match="fp16 needs a GPU"):
        resolve_precision("fp16", "cpu")
