"""The compiled kernels against the float64 reference, and their further guarantees."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.ops import cpu, operators, reference
from tests.model.ops.attention_cases import (
    KINDS,
    Case,
    Implementation,
    Kind,
    Shapes,
    assert_close,
    attend,
    gradients,
    random_case,
)

NOT_FINITE = (math.nan, math.inf, -math.inf)


def _assert_parity(compiled: Implementation, case: Case) -> None:
    output, grads = gradients(compiled, case, torch.float32)
    exact, exact_grads = gradients(reference, case, torch.float64)
    assert_close(output, exact)
    assert grads.keys() == exact_grads.keys()
    for name, grad in grads.items():
        assert_close(grad, exact_grads[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("same_loc", [False, True], ids=["own offsets", "same_loc"])
@pytest.mark.parametrize("channels", [16, 32, 64, 1, 7, 24])
def test_output_and_gradients_are_those_of_the_reference(
    compiled: Implementation, kind: Kind, boxes: bool, same_loc: bool, channels: int
) -> None:
    _assert_parity(compiled, random_case(kind, channels=channels, boxes=boxes, same_loc=same_loc))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shapes", [((1, 1),), ((1, 9),), ((9, 1),), ((1, 1), (1, 4), (5, 1), (2, 2), (3, 4))], ids=str
)
@pytest.mark.parametrize("points", [1, 3, 5, 8])
def test_unusual_levels_and_points_are_handled(
    compiled: Implementation, kind: Kind, shapes: Shapes, points: int
) -> None:
    _assert_parity(compiled, random_case(kind, shapes=shapes, points=points, channels=16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [1, 2, 127, 509])
def test_any_number_of_queries_is_handled(
    compiled: Implementation, kind: Kind, queries: int
) -> None:
    _assert_parity(compiled, random_case(kind, queries=queries, heads=2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0), (0, 0)])
def test_no_images_or_queries_give_empty_output_and_zero_gradients(
    compiled: Implementation, kind: Kind, batch: int, queries: int
) -> None:
    case = random_case(kind, batch=batch, queries=queries)
    output, grads = gradients(compiled, case, torch.float32)
    assert output.shape == (batch, queries, 96)
    assert grads.keys() == case.tensors().keys()
    assert all(grad.count_nonzero() == 0 for grad in grads.values())


@pytest.mark.parametrize("kind", KINDS)
def test_map_edges_give_the_reference_output(compiled: Implementation, kind: Kind) -> None:
    width, height = 8, 4  # powers of two: the positions are exact
    edges = [(x, y) for x in (-1.0, -0.5, 7.5, 8.0) for y in (-1.0, -0.5, 1.0, 3.5, 4.0)]
    case = random_case(kind, queries=len(edges), points=1, shapes=((height, width),))
    positions = torch.tensor(edges)  # pixels
    references = (positions + 0.5) / torch.tensor([width, height])
    case = replace(
        case,
        reference_points=references[None, :, None].expand(2, -1, -1, -1),
        sampling_offsets=torch.zeros_like(case.sampling_offsets),
    )
    output = attend(compiled, case)
    assert_close(output, attend(reference, case.mapped(torch.float64)), 1e-6)
    beyond = [x in (-1.0, 8.0) or y in (-1.0, 4.0) for x, y in edges]
    assert output[:, torch.tensor(beyond)].count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_all_points_outside_give_exact_zeros(compiled: Implementation, kind: Kind) -> None:
    case = random_case(kind)
    case = replace(case, reference_points=case.reference_points + 100.0)
    output, grads = gradients(compiled, case, torch.float32)
    assert output.count_nonzero() == 0
    assert all(grad.count_nonzero() == 0 for grad in grads.values())


def test_points_outside_keep_their_share_of_the_key_aware_softmax(
    compiled: Implementation,
) -> None:
    case = random_case("shared keys", points=2, shapes=((1, 1),), channels=16, queries=1)
    offsets = torch.zeros_like(case.sampling_offsets)
    offsets[..., 1, :] = 50.0
    centre = torch.full_like(case.reference_points, 0.5)
    case = replace(case, sampling_offsets=offsets, reference_points=centre)
    assert case.query is not None
    score = (case.query[:, 0] * case.value[:, 0]).sum(-1, keepdim=True) / 4.0  # outside: score 0
    expected = torch.sigmoid(score) * case.value[:, 0]
    assert_close(attend(compiled, case)[:, 0], expected.flatten(1), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_pick_one_point_without_overflow(compiled: Implementation, kind: Kind) -> None:
    case = random_case(kind)
    if kind == "plain":
        assert case.logits is not None
        case = replace(case, logits=case.logits * 1e4)
    else:
        assert case.query is not None
        case = replace(case, query=case.query * 1e4)
    exact = attend(reference, case.mapped(torch.float64))
    output, grads = gradients(compiled, case, torch.float32)
    assert_close(output, exact, 1e-3)
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", NOT_FINITE)
@pytest.mark.parametrize("of", ["offsets", "references"])
def test_positions_that_are_not_finite_contribute_nothing(
    compiled: Implementation, kind: Kind, odd: float, of: str
) -> None:
    case = random_case(kind, boxes=True)
    odd_offsets, odd_references = case.sampling_offsets.clone(), case.reference_points.clone()
    if of == "offsets":
        odd_offsets[:, ::2, :, 1, 2, 1] = odd
    else:
        odd_references[:, ::2, 1, 3] = odd
    case = replace(case, sampling_offsets=odd_offsets, reference_points=odd_references)
    _assert_parity(compiled, case)


@pytest.mark.parametrize("kind", KINDS)
def test_corners_outside_are_never_read(compiled: Implementation, kind: Kind) -> None:
    case = random_case(kind, shapes=((2, 2),), points=1, queries=1, batch=1, heads=1)
    offsets = torch.full_like(case.sampling_offsets, 40.0)
    value = torch.full_like(case.value, math.inf)
    key = None if case.key is None else value.clone()
    case = replace(case, sampling_offsets=offsets, value=value, key=key)
    assert attend(compiled, case).count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_values_reaches_the_output(compiled: Implementation, kind: Kind) -> None:
    case = random_case(kind)
    case = replace(case, value=torch.full_like(case.value, math.nan))
    assert attend(compiled, case).isnan().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("points", [3, 4])
def test_nan_in_one_query_stays_with_that_query(
    compiled: Implementation, kind: Kind, points: int
) -> None:
    case = random_case(kind, points=points)
    field = "logits" if kind == "plain" else "query"
    broken = case.tensors()[field].clone()
    broken[:, 3] = math.nan
    output, grads = gradients(compiled, case, torch.float32)
    odd_output, odd_grads = gradients(
        compiled,
        replace(case, **{field: broken}),  # type: ignore[arg-type]
        torch.float32,
    )
    others = [query for query in range(11) if query != 3]
    assert odd_output[:, 3].isnan().all()
    assert torch.equal(odd_output[:, others], output[:, others])
    for name in (field, "sampling_offsets", "reference_points"):
        assert torch.equal(odd_grads[name][:, others], grads[name][:, others]), name


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs_give_what_contiguous_ones_give(
    compiled: Implementation, kind: Kind
) -> None:
    case = random_case(kind)
    strided = {
        name: tensor.transpose(0, 1).contiguous().transpose(0, 1)
        for name, tensor in case.tensors().items()
    }
    assert not strided["value"].is_contiguous()
    output, grads = gradients(compiled, case, torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in strided.items()}
    strided_output = attend(compiled, replace(case, **leaves))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    strided_output.backward(torch.randn(output.shape, generator=generator))
    assert torch.equal(strided_output, output)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, grads[name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
def test_runs_and_thread_counts_give_identical_bits(
    compiled: Implementation, kind: Kind, boxes: bool
) -> None:
    case = random_case(kind, queries=700, boxes=boxes, shapes=((20, 20), (10, 10)))
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3, 8):
            torch.set_num_threads(threads)
            runs.append(gradients(compiled, case, torch.float32))
    finally:
        torch.set_num_threads(before)
    output, grads = runs[0]
    for other_output, other_grads in runs[1:]:
        assert torch.equal(other_output, output)
        assert all(torch.equal(other_grads[name], grads[name]) for name in grads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [3, 300])
def test_an_image_gives_the_same_bits_alone_and_in_a_batch(
    compiled: Implementation, kind: Kind, queries: int
) -> None:
    case = random_case(kind, batch=5, queries=queries, shapes=((16, 16), (8, 8)))
    together = attend(compiled, case)
    for index in range(5):
        assert torch.equal(attend(compiled, case.image(index)), together[index : index + 1])


def test_key_that_is_the_value_counts_as_shared(compiled: Implementation) -> None:
    shared = random_case("shared keys")
    same = replace(shared, key=shared.value.clone())
    assert_close(attend(compiled, same), attend(compiled, shared), 1e-6)


def test_untracked_reference_points_get_no_gradient(compiled: Implementation) -> None:
    case = random_case("shared keys").mapped(torch.float32, leaf=True)
    fixed = replace(case, reference_points=case.reference_points.detach())
    attend(compiled, fixed).sum().backward()
    assert fixed.reference_points.grad is None
    assert fixed.value.grad is not None


def test_inputs_are_left_unchanged(compiled: Implementation) -> None:
    case = random_case("separate keys")
    before = {name: tensor.clone() for name, tensor in case.tensors().items()}
    leaf = replace(case, **{n: t.requires_grad_() for n, t in case.tensors().items()})  # type: ignore[arg-type]
    attend(compiled, leaf).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.tensors().items())


_levels = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5)


@given(
    kind=st.sampled_from(KINDS),
    shapes=_levels,
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    channels=st.sampled_from([1, 8, 16, 20, 32, 64]),
    queries=st.integers(0, 70),
    points=st.integers(1, 6),
    boxes=st.booleans(),
    same_loc=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_any_shapes_give_the_reference_output(
    kind: Kind, shapes: list[tuple[int, int]], seed: int, **sizes: Any
) -> None:
    if not cpu.available():
        pytest.skip("no compiled kernels here")
    case = random_case(kind, shapes=tuple(shapes), seed=seed, **sizes)
    output = attend(operators, case)
    assert_close(output, attend(reference, case.mapped(torch.float64)))
