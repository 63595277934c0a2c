"""The projections of all levels in one call give what they give one after the other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.network import onednn
from model.network.inference import convert
from model.network.levels import InputProjections, input_projections, project_levels, tokens_of
from model.ops import cpu
from tests.model.network.test_detector import tiny

pytestmark = [
    pytest.mark.usefixtures("three_threads"),
    pytest.mark.skipif(
        not onednn.is_available(torch.device("cpu"), torch.float32) or not cpu.available(),
        reason="needs the compiled kernels",
    ),
]
_CHANNELS = (24, 40, 70)


def _projections(**changes: Any) -> InputProjections:
    """Projections with random parameters."""
    torch.manual_seed(1)
    projections = input_projections(_CHANNELS, tiny(**({"d_model": 64} | changes)))
    for parameter in projections.parameters():
        nn.init.normal_(parameter, std=0.3)
    projections.eval()
    return projections


def _maps(height: int, width: int, batch: int = 1) -> list[Tensor]:
    """Maps of strides 8, 16, 32 of an image, whose mean is far from 0."""
    generator = torch.Generator().manual_seed(height)
    return [
        torch.randn(
            batch, channels, -(-height // stride), -(-width // stride), generator=generator
        ).to(memory_format=torch.channels_last)
        + 5
        for channels, stride in zip(_CHANNELS, (8, 16, 32), strict=True)
    ]


def _check(
    projections: InputProjections, maps: Sequence[Tensor], *, cropped: int = 0
) -> tuple[InputProjections, Tensor]:
    """Asserts that the tokens are as exact as the modules'; returns inference form and tokens."""
    shapes = tuple(
        (max(1, height - cropped), max(1, width - cropped))
        for height, width in projections.shapes(maps)
    )
    doubles = [each.double() for each in maps]
    with torch.no_grad():
        modules = tokens_of(project_levels(maps, projections), shapes)
        exact = tokens_of(project_levels(doubles, copy.deepcopy(projections).double()), shapes)
        form = convert(projections, torch.float32)
        assert isinstance(form, InputProjections)
        assert form.stack is not None
        found = form.tokens(maps, shapes)
    allowed = 2e-5 + 2 * float((modules - exact).abs().max())
    assert float((found - exact).abs().max()) <= allowed
    return form, found


@pytest.mark.parametrize(
    "size", [(32, 32), (64, 64), (33, 100), (416, 352), (320, 8)], ids="{0[0]}x{0[1]}".format
)
@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_are_those_of_the_modules(size: tuple[int, int], batch: int) -> None:
    _check(_projections(), _maps(*size, batch))


@pytest.mark.parametrize("changes", [{"d_model": 32}, {"num_feature_levels": 3}], ids=str)
def test_other_architectures(changes: dict[str, int]) -> None:
    _check(_projections(**changes, high_level_scales=2), _maps(100, 130))


def test_only_the_upper_left_of_a_cropped_map_becomes_tokens() -> None:
    _check(_projections(), _maps(128, 160, 2), cropped=2)


def test_the_tokens_are_the_same_to_the_bit_on_any_number_of_threads_and_in_any_batch() -> None:
    maps = _maps(200, 230, 3)
    form, together = _check(_projections(), maps)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(form.tokens(maps, form.shapes(maps)), together)
    for image in range(3):
        alone = [each[image : image + 1] for each in maps]
        assert torch.equal(form.tokens(alone, form.shapes(alone))[0], together[image])


def test_maps_need_not_be_channels_last() -> None:
    maps = _maps(96, 64)
    form, expected = _check(_projections(), maps)
    planar = [each.contiguous() for each in maps]
    assert torch.equal(form.tokens(planar, form.shapes(planar)), expected)


def test_nan_stays_with_its_image() -> None:
    maps = _maps(64, 96, 2)
    form, before = _check(_projections(), maps)
    for each in maps:
        each[1] = float("nan")
    after = form.tokens(maps, form.shapes(maps))
    assert torch.equal(after[0], before[0])
    assert after[1].isnan().all()


def test_an_empty_batch_has_no_tokens() -> None:
    maps = _maps(64, 64)
    form, tokens = _check(_projections(), maps)
    empty = [each[:0] for each in maps]
    assert form.tokens(empty, form.shapes(empty)).shape == (0, *tokens.shape[1:])


def test_levels_from_levels_run_one_by_one() -> None:
    projections = convert(_projections(num_feature_levels=5), torch.float32)
    assert isinstance(projections, InputProjections)
    assert projections.stack is None
    maps = _maps(256, 256)
    with torch.no_grad():
        tokens = projections.tokens(maps, projections.shapes(maps))
    assert tokens.shape[1] == sum(side**2 for side in (32, 16, 8, 4, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_kernels_levels_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    if dtype == torch.float32:
        monkeypatch.setattr(cpu, "available", lambda: False)
    form = convert(_projections(), dtype)
    assert isinstance(form, InputProjections)
    assert form.stack is None
