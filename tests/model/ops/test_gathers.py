"""Deformable attention by gathers equals the reference, also at the edges and with odd numbers."""

from __future__ import annotations

import pytest
import torch

from model import ops
from model.ops import gathers, reference
from tests.model.ops.attention_cases import KINDS, Case, Kind, attend, random_case

_SHAPES = (((9, 7), (5, 4), (3, 3), (2, 1)), ((1, 1),), ((1, 6), (6, 1)))


def assert_same(case: Case) -> None:
    exact = case.mapped(torch.float64)
    found = attend(gathers, exact)
    torch.testing.assert_close(found, attend(reference, exact), atol=1e-5, rtol=0)
    rounded = attend(gathers, case)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), found, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("same_loc", [False, True])
@pytest.mark.parametrize("shapes", _SHAPES)
def test_output_is_that_of_the_reference(
    kind: Kind, boxes: bool, same_loc: bool, shapes: tuple[tuple[int, int], ...]
) -> None:
    assert_same(random_case(kind, boxes=boxes, same_loc=same_loc, shapes=shapes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [{"points": 1}, {"points": 3, "heads": 1}, {"queries": 0}])
def test_numbers_of_points_heads_and_queries(kind: Kind, sizes: dict[str, int]) -> None:
    assert_same(random_case(kind, **sizes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cells", [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0])
def test_points_on_the_edges_of_the_maps(kind: Kind, cells: float) -> None:
    case = random_case(kind)
    case.reference_points[:, ::2] = 0.0
    case.reference_points[:, 1::2] = 1.0
    case.sampling_offsets.fill_(cells)
    assert_same(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_points_that_are_not_finite_contribute_nothing(kind: Kind, odd: float) -> None:
    case = random_case(kind)
    case.sampling_offsets[0, 0, 0, 0, 0, 0] = odd
    case.sampling_offsets[1, 3] = odd
    assert_same(case)


def test_the_choice_ends_with_its_block() -> None:
    before = ops.implementation_name("cpu")
    with ops.computed_by("gathers"):
        assert ops.implementation_name("cpu") == "gathers"
    assert ops.implementation_name("cpu") == before
