"""The compiled CPU kernels on bfloat16 tensors, and on mixtures of it and float32."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.ops import reference
from tests.model.ops.attention_cases import (
    KINDS,
    Case,
    Implementation,
    Kind,
    assert_close,
    attend,
    random_case,
)

TOLERANCE, RMS_TOLERANCE = 2e-2, 8e-4


def _exact(case: Case) -> Tensor:
    """The formula in float64 on the very numbers that the case holds."""
    return attend(reference, case.mapped(torch.float64))


def _narrowed(case: Case, names: set[str]) -> Case:
    tensors = {name: t.bfloat16() for name, t in case.tensors().items() if name in names}
    return replace(case, **tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("channels", [16, 32, 64, 1, 7, 24])
def test_bfloat16_output_is_the_rounded_exact_one(
    compiled: Implementation, kind: Kind, boxes: bool, channels: int
) -> None:
    case = random_case(kind, channels=channels, boxes=boxes).mapped(torch.bfloat16)
    output, exact = attend(compiled, case), _exact(case)
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), exact, TOLERANCE)
    # Rounding the output is the only error that counts: half a unit of its last place.
    assert ((output.double() - exact).abs() <= exact.abs() / 256 + 1e-4).all()
    rms = float((output.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert rms <= 256 * RMS_TOLERANCE / 64


@pytest.mark.parametrize("queries", [3, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_many_and_few_queries_read_bfloat16_alike(
    compiled: Implementation, kind: Kind, queries: int
) -> None:
    case = random_case(kind, queries=queries, shapes=((16, 16), (8, 8))).mapped(torch.bfloat16)
    assert_close(attend(compiled, case).float(), _exact(case), TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("locations", [False, True], ids=["float32 places", "bfloat16 places"])
@pytest.mark.parametrize("weights", [False, True], ids=["float32 scores", "bfloat16 scores"])
@pytest.mark.parametrize("narrow", ["value", "key", "both", "neither"])
def test_every_mixture_of_types_gives_the_exact_output(
    compiled: Implementation, kind: Kind, locations: bool, weights: bool, narrow: str
) -> None:
    names = {"value", "key"} if narrow == "both" else {narrow}
    names |= {"sampling_offsets", "reference_points"} if locations else set()
    names |= {"query", "logits"} if weights else set()
    case = _narrowed(random_case(kind), names)
    output = attend(compiled, case)
    assert output.dtype == case.value.dtype
    tolerance = 1e-4 if output.dtype == torch.float32 else TOLERANCE
    assert_close(output.float(), _exact(case), tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_the_types_of_their_inputs(compiled: Implementation, kind: Kind) -> None:
    # Places stay float32: those of bfloat16 often lie exactly on a pixel's centre, where the slope
    # of a sample jumps and rounding decides between two right results.
    case = _narrowed(random_case(kind), {"value", "key", "query", "logits"})
    leaf = replace(case, **{n: t.requires_grad_() for n, t in case.tensors().items()})  # type: ignore[arg-type]
    exact = leaf.mapped(torch.float64, leaf=True)
    above = torch.randn(2, 11, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    attend(compiled, leaf).backward(above)
    attend(reference, exact).backward(above.double())
    for name, tensor in leaf.tensors().items():
        assert tensor.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        right = exact.tensors()[name].grad
        assert right is not None
        assert_close(tensor.grad.float(), right, TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_image_gives_the_same_bits_alone_and_in_a_batch(
    compiled: Implementation, kind: Kind
) -> None:
    case = random_case(kind, batch=3, queries=70).mapped(torch.bfloat16)
    together = attend(compiled, case)
    for index in range(3):
        assert torch.equal(attend(compiled, case.image(index)), together[index : index + 1])


@pytest.mark.parametrize("channels", [7, 16])
def test_output_is_rounded_as_torch_rounds(compiled: Implementation, channels: int) -> None:
    # Halfway between two pixels: float32 holds the mean of neighbouring numbers, which is a tie.
    case = random_case("plain", shapes=((1, 2),), points=1, channels=channels, batch=40)
    left = case.value[:, :1].bfloat16()
    step = torch.arange(channels) % 4
    right = (left.view(torch.int16) + step.to(torch.int16)).view(torch.bfloat16)
    centre = torch.full_like(case.reference_points, 0.5)
    still = torch.zeros_like(case.sampling_offsets)
    value = torch.cat((left, right), dim=1)
    case = replace(case, value=value, reference_points=centre, sampling_offsets=still)
    expected = (0.5 * left.float() + 0.5 * right.float()).bfloat16().flatten(2)
    assert torch.equal(attend(compiled, case), expected.expand(-1, 11, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_in_bfloat16_values_reach_the_output(
    compiled: Implementation, kind: Kind
) -> None:
    case = random_case(kind).mapped(torch.bfloat16)
    broken = replace(case, value=torch.full_like(case.value, math.nan))
    assert attend(compiled, broken).isnan().any()
    if kind == "plain":
        endless = replace(case, value=torch.full_like(case.value, math.inf))
        assert attend(compiled, endless).isinf().any()
