"""The GPU's arithmetic, run on the CPU by a warp of 32 lanes in a loop, against float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.ops import reference
from tests.model.ops import attention_cases, warp_host
from tests.model.ops.attention_cases import KINDS, Case, Kind, Shapes, assert_close, random_case
from tests.model.ops.warp_host import HostWarp

# Largest error, and the root of the mean squared one, for values of about 1.
TOLERANCES = {
    torch.float32: (1e-4, 1e-5),
    torch.float16: (4e-3, 2e-4),
    torch.bfloat16: (2e-2, 8e-4),
}
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.slow)
DTYPES = (torch.float32, torch.float16, BFLOAT16)

# A row's points on one group of lanes, or split over four as with few queries.
all_splits = pytest.mark.parametrize("splits", [1, 4], ids=["whole", "split"])


def _exact(case: Case) -> Tensor:
    return attention_cases.attend(reference, case.mapped(torch.float64))


def _assert_parity(
    warp: HostWarp, case: Case, *, fixed: bool = False, splits: int = 1, averaged: bool = True
) -> None:
    output, exact = warp_host.attend(warp, case, fixed=fixed, splits=splits), _exact(case)
    assert output.dtype == case.value.dtype
    if output.numel() == 0:
        return
    largest, rms = TOLERANCES[output.dtype]
    assert_close(output.float(), exact, largest)
    if not averaged:  # a handful of numbers has no meaningful mean
        return
    error = float((output.double() - exact).square().mean().sqrt())
    assert error <= rms * max(1.0, float(exact.abs().max())), error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("same_loc", [False, True], ids=["own offsets", "same_loc"])
@pytest.mark.parametrize(
    ("channels", "splits"), [(8, 1), (16, 1), (32, 1), (32, 4), (64, 1), (64, 4), (128, 1)]
)
def test_warp_gives_the_reference_output(  # noqa: PLR0913, PLR0917 - one a dimension
    warp: HostWarp,
    dtype: torch.dtype,
    kind: Kind,
    boxes: bool,
    same_loc: bool,
    channels: int,
    splits: int,
) -> None:
    case = random_case(kind, channels=channels, boxes=boxes, same_loc=same_loc)
    _assert_parity(warp, warp_host.narrowed(case, dtype), splits=splits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_sizes_known_to_the_compiler_give_the_same(warp: HostWarp, kind: Kind, seed: int) -> None:
    case = warp_host.narrowed(random_case(kind, heads=8, seed=seed), torch.float16)
    _assert_parity(warp, case, fixed=True)
    assert torch.equal(warp_host.attend(warp, case, fixed=True), warp_host.attend(warp, case))


@pytest.mark.parametrize("dtype", [torch.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@all_splits
def test_offsets_in_float32_are_taken_as_they_are(
    warp: HostWarp, dtype: torch.dtype, kind: Kind, splits: int
) -> None:
    case = random_case(kind, shapes=((60, 160),))
    _assert_parity(warp, warp_host.narrowed(case, dtype, float_offsets=True), splits=splits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shapes", [((1, 1),), ((1, 9),), ((9, 1),), ((1, 1), (1, 4), (5, 1), (2, 2), (3, 4))], ids=str
)
@pytest.mark.parametrize("points", [1, 3, 4, 5, 8])
def test_unusual_levels_and_points_are_handled(
    warp: HostWarp, dtype: torch.dtype, kind: Kind, shapes: Shapes, points: int
) -> None:
    for channels, splits in ((16, 1), (64, 1), (32, 4), (64, 4)):
        case = random_case(kind, shapes=shapes, points=points, channels=channels)
        _assert_parity(warp, warp_host.narrowed(case, dtype), splits=splits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0), (0, 0)])
def test_no_images_or_queries_write_nothing(
    warp: HostWarp, kind: Kind, batch: int, queries: int
) -> None:
    case = random_case(kind, batch=batch, queries=queries)
    assert warp_host.attend(warp, case).shape == (batch, queries, 96)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@all_splits
def test_map_edges_give_the_reference_output(
    warp: HostWarp, dtype: torch.dtype, kind: Kind, splits: int
) -> None:
    width, height = 8, 4  # powers of two: the positions are exact
    edges = [(x, y) for x in (-1.0, -0.5, 7.5, 8.0) for y in (-1.0, -0.5, 1.0, 3.5, 4.0)]
    case = random_case(kind, queries=len(edges), points=1, shapes=((height, width),))
    references = (torch.tensor(edges) + 0.5) / torch.tensor([width, height])
    case = replace(
        warp_host.narrowed(case, dtype),
        reference_points=references[None, :, None].expand(2, -1, -1, -1),
        sampling_offsets=torch.zeros_like(case.sampling_offsets).to(dtype),
    )
    _assert_parity(warp, case, splits=splits)
    beyond = [x in (-1.0, 8.0) or y in (-1.0, 4.0) for x, y in edges]
    assert warp_host.attend(warp, case, splits=splits)[:, torch.tensor(beyond)].count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@all_splits
def test_all_points_outside_give_exact_zeros(
    warp: HostWarp, dtype: torch.dtype, kind: Kind, splits: int
) -> None:
    case = warp_host.narrowed(random_case(kind), dtype)
    case = replace(case, reference_points=case.reference_points + 100.0)
    assert warp_host.attend(warp, case, splits=splits).count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_that_do_not_count_are_never_used(
    warp: HostWarp, dtype: torch.dtype, kind: Kind
) -> None:
    # The lower left pixel is 1 and the others are NaN. Points half outside, at its corner, see
    # a quarter of it and nothing else; points far outside see nothing.
    case = random_case(kind, shapes=((2, 2),), points=1, queries=2, batch=1, heads=1)
    value = torch.full_like(case.value, math.nan)
    value[:, 2] = 1.0
    corner = torch.tensor([[0.0, 1.0], [9.0, 9.0]]).view(1, 2, 1, 2)
    still = torch.zeros_like(case.sampling_offsets)
    key = None if case.key is None else value.clone()
    case = replace(case, value=value, key=key, reference_points=corner, sampling_offsets=still)
    output = warp_host.attend(warp, warp_host.narrowed(case, dtype))
    assert torch.equal(output[0, 0].float(), torch.full((32,), 0.25))
    assert output[0, 1].count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("of", ["offsets", "references"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@all_splits
def test_positions_that_are_not_finite_contribute_nothing(  # noqa: PLR0913, PLR0917 - one a dimension
    warp: HostWarp, kind: Kind, odd: float, of: str, dtype: torch.dtype, splits: int
) -> None:
    case = warp_host.narrowed(random_case(kind, boxes=True), dtype)
    odd_offsets, odd_references = case.sampling_offsets.clone(), case.reference_points.clone()
    if of == "offsets":
        odd_offsets[:, ::2, :, 1, 2, 1] = odd
    else:
        odd_references[:, ::2, 1, 3] = odd
    case = replace(case, sampling_offsets=odd_offsets, reference_points=odd_references)
    _assert_parity(warp, case, splits=splits)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@all_splits
def test_huge_logits_pick_one_point_without_overflow(
    warp: HostWarp, dtype: torch.dtype, kind: Kind, splits: int
) -> None:
    case = random_case(kind)
    field = "logits" if kind == "plain" else "query"
    case = replace(case, **{field: case.tensors()[field] * 1e4})  # type: ignore[arg-type]
    case = warp_host.narrowed(case, dtype)
    output = warp_host.attend(warp, case, splits=splits)
    assert output.isfinite().all()
    assert_close(output.float(), _exact(case), 2e-2 if dtype == torch.bfloat16 else 1e-3)


@all_splits
def test_logits_of_minus_infinity_have_no_weight(warp: HostWarp, splits: int) -> None:
    case = random_case("plain")
    assert case.logits is not None
    logits = case.logits.clone()
    logits[:, :, :, [0, 1, 7]] = -math.inf
    logits[:, 5] = -math.inf
    case = replace(case, logits=logits)
    output, exact = warp_host.attend(warp, case, splits=splits), _exact(case)
    assert output[:, 5].isnan().all() and exact[:, 5].isnan().all()
    others = [query for query in range(11) if query != 5]
    assert_close(output[:, others], exact[:, others])


@all_splits
@pytest.mark.parametrize("kind", ["shared keys", "separate keys"])
def test_scores_of_minus_infinity_have_no_weight(warp: HostWarp, kind: Kind, splits: int) -> None:
    case = random_case(kind, shapes=((2, 2),), points=2, queries=3, batch=1, heads=1)
    keys = case.value if case.key is None else case.key
    # The first point of each query is at a pixel whose score overflows, the second at another one.
    pixels = torch.tensor([[0.25, 0.25], [0.75, 0.75]]).view(1, 1, 1, 1, 2, 2)
    query = torch.full_like(case.query, 1e30)  # type: ignore[arg-type]
    keys = torch.full_like(keys, 0.0)
    keys[:, 0] = -1e30
    value = keys if case.key is None else case.value
    references = torch.zeros_like(case.reference_points)
    case = replace(
        case,
        query=query,
        key=None if case.key is None else keys,
        value=value,
        reference_points=references,
        sampling_offsets=(pixels * 2).expand(1, 3, 1, 1, 2, 2),
    )
    output = warp_host.attend(warp, case, splits=splits)
    assert_close(output, value[:, 3:4, 0].expand(1, 3, 32))


@pytest.mark.parametrize("far", [False, True], ids=["points inside", "points outside"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@all_splits
def test_nan_in_one_query_stays_with_that_query(
    warp: HostWarp, dtype: torch.dtype, kind: Kind, far: bool, splits: int
) -> None:
    case = warp_host.narrowed(random_case(kind), dtype)
    case = replace(case, reference_points=case.reference_points + 100.0 * far)
    field = "logits" if kind == "plain" else "query"
    broken = case.tensors()[field].clone()
    broken[:, 3] = math.nan
    output = warp_host.attend(warp, case, splits=splits)
    odd_output = warp_host.attend(warp, replace(case, **{field: broken}), splits=splits)  # type: ignore[arg-type]
    others = [query for query in range(11) if query != 3]
    assert odd_output[:, 3].isnan().all()
    assert torch.equal(odd_output[:, others], output[:, others])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@all_splits
def test_image_gives_the_same_bits_alone_and_in_a_batch(
    warp: HostWarp, dtype: torch.dtype, kind: Kind, splits: int
) -> None:
    case = warp_host.narrowed(random_case(kind, batch=3, queries=13), dtype)
    together = warp_host.attend(warp, case, splits=splits)
    for index in range(3):
        alone = warp_host.attend(warp, case.image(index), splits=splits)
        assert torch.equal(alone, together[index : index + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_strided_and_misaligned_inputs_give_what_plain_ones_give(
    warp: HostWarp, kind: Kind
) -> None:
    case = warp_host.narrowed(random_case(kind), torch.float16)

    def moved(tensor: Tensor) -> Tensor:  # transposed in memory, and 2 or 4 bytes off
        flat = tensor.transpose(0, 1).contiguous().flatten()
        longer = torch.cat((flat.new_zeros(1), flat))
        return longer[1:].view(tensor.transpose(0, 1).shape).transpose(0, 1)

    odd = replace(case, **{name: moved(t) for name, t in case.tensors().items()})  # type: ignore[arg-type]
    assert odd.value.data_ptr() % 16 != 0
    assert torch.equal(warp_host.attend(warp, odd), warp_host.attend(warp, case))


_levels = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6)


@given(
    dtype=st.sampled_from([torch.float32, torch.float16]),
    kind=st.sampled_from(KINDS),
    shapes=_levels,
    batch=st.integers(1, 3),
    heads=st.integers(1, 9),
    channels=st.sampled_from([8, 16, 32, 64, 128]),
    queries=st.integers(0, 23),
    points=st.integers(1, 7),
    boxes=st.booleans(),
    same_loc=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
def test_any_shapes_give_the_reference_output(
    warp: HostWarp,
    dtype: torch.dtype,
    kind: Kind,
    shapes: list[tuple[int, int]],
    seed: int,
    **sizes: Any,
) -> None:
    case = random_case(kind, shapes=tuple(shapes), seed=seed, **sizes)
    _assert_parity(warp, warp_host.narrowed(case, dtype), averaged=False)
