"""Padding that the attention ignores by itself equals padding that is zero."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import ops
from model.ops import operators, reference
from model.ops.padding import without_padding
from tests.model.ops import warp_host
from tests.model.ops.attention_cases import KINDS, Case, Kind, assert_close, attend, random_case
from tests.model.ops.warp_host import HostWarp

SHAPES = ((9, 7), (5, 4), (3, 3), (2, 1))
SIZES = (  # (height, width) of two images without padding, by level
    ((9, 5), (5, 3), (3, 2), (2, 1)),
    ((1, 7), (1, 4), (1, 3), (1, 1)),
)
GARBAGE = 3.0e4  # in the padding: as large as float16 allows


def ratios() -> Tensor:
    """[B, L, 2], as the network computes them."""
    return torch.tensor(
        [
            [(w / width, h / height) for (h, w), (height, width) in zip(sizes, SHAPES, strict=True)]
            for sizes in SIZES
        ]
    )


def padding() -> Tensor:
    """Bool [B, S], True on padding."""
    rows = []
    for sizes in SIZES:
        masks = [torch.ones(shape, dtype=torch.bool) for shape in SHAPES]
        for mask, (height, width) in zip(masks, sizes, strict=True):
            mask[:height, :width] = False
        rows.append(torch.cat([mask.flatten() for mask in masks]))
    return torch.stack(rows)


def zeroed(case: Case) -> Case:
    """The case with zeros in the padding."""
    return _filled(case, 0.0)


def spoilt(case: Case) -> Case:
    """The case with garbage in the padding."""
    return _filled(case, GARBAGE)


def _filled(case: Case, number: float) -> Case:
    rows = padding()[..., None, None]
    key = None if case.key is None else case.key.masked_fill(rows, number)
    return replace(case, value=case.value.masked_fill(rows, number), key=key)


def test_padding_is_zeroed_by_the_shares_of_each_map() -> None:
    tokens = torch.randn(2, sum(h * w for h, w in SHAPES), 3, 8)
    expected = tokens.masked_fill(padding()[..., None, None], 0.0)
    assert torch.equal(without_padding(tokens, SHAPES, ratios()), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize(("dtype", "splits"), [(torch.float32, 1), (torch.float16, 4)], ids=str)
def test_a_warp_ignores_padding(
    warp: HostWarp, kind: Kind, boxes: bool, splits: int, dtype: torch.dtype
) -> None:
    case = warp_host.narrowed(random_case(kind, shapes=SHAPES, boxes=boxes, queries=40), dtype)
    found = warp_host.attend(warp, spoilt(case), splits=splits, valid_ratios=ratios())
    exact = attend(reference, zeroed(case).mapped(torch.float64))
    assert_close(found.float(), exact, 1e-4 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 2.0, float("nan"), float("inf")])
def test_a_warp_reads_no_token_of_another_map_whatever_the_shares(
    warp: HostWarp, ratio: float
) -> None:
    case = random_case("shared keys", shapes=SHAPES)
    found = warp_host.attend(warp, case, valid_ratios=torch.full((2, len(SHAPES), 2), ratio))
    assert found.isfinite().all()


def _attend(implementation: object, case: Case, valid_ratios: Tensor) -> Tensor:
    located = (case.spatial_shapes, case.reference_points, case.sampling_offsets)
    if case.query is None:
        return implementation.ms_deform_attn(  # type: ignore[attr-defined, no-any-return]
            case.value, *located, case.logits, valid_ratios
        )
    return implementation.key_aware_deform_attn(  # type: ignore[attr-defined, no-any-return]
        case.query, case.key, case.value, *located, valid_ratios
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", [ops, operators], ids=["ops", "operators"])
def test_other_implementations_zero_the_padding(kind: Kind, implementation: object) -> None:
    case = random_case(kind, shapes=SHAPES)
    found = _attend(implementation, spoilt(case), ratios())
    assert_close(found, attend(reference, zeroed(case).mapped(torch.float64)), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_padding_are_zero(kind: Kind) -> None:
    case = spoilt(random_case(kind, shapes=SHAPES)).mapped(torch.float32, leaf=True)
    _attend(ops, case, ratios()).sum().backward()
    assert case.value.grad is not None
    assert not case.value.grad[padding()].any()
    assert case.value.grad[~padding()].any()


def test_the_operator_refuses_to_differentiate_with_padding() -> None:
    case = random_case("plain", shapes=SHAPES).mapped(torch.float32, leaf=True)
    with pytest.raises(RuntimeError, match="valid_ratios"):
        _attend(operators, case, ratios())


@pytest.mark.parametrize("shape", [(2, 4), (1, 4, 2), (2, 3, 2), (2, 4, 4)])
def test_shares_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="valid_ratios"):
        _attend(ops, random_case("plain", shapes=SHAPES), torch.ones(shape))
