"""The GPU's backward pass, run on the CPU by a warp of 32 lanes in a loop, against float64."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.ops import cpu, cuda, cuda_backward, operators, reference
from model.ops.cuda_call import BackwardCall, Call, variant_of
from model.ops.nvrtc import Variant
from tests.model.ops import warp_host
from tests.model.ops.attention_cases import (
    KINDS,
    Case,
    Kind,
    Shapes,
    assert_close,
    gradients,
    random_case,
)
from tests.model.ops.warp_host import HostWarp

TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.slow)
NAMES = {field.name for field in fields(cpu.InputGradients)}


@pytest.fixture(autouse=True)
def _warp_in_place_of_a_gpu(monkeypatch: pytest.MonkeyPatch, warp: HostWarp) -> None:
    def launch(kernel: object, call: Call, _device: torch.device) -> None:
        assert isinstance(kernel, Variant)
        warp.run(kernel, call)

    monkeypatch.setattr(cuda, "_loaded", lambda variant, _device: variant)
    monkeypatch.setattr(cuda, "_launch", launch)


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def _grad_output(case: Case) -> Tensor:
    batch, _, heads, channels = case.value.shape
    size = (batch, case.sampling_offsets.shape[1], heads * channels)
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


def _differentiated(case: Case) -> dict[str, Tensor]:
    """The kernel's gradients of all inputs."""
    grad_output = _grad_output(case).to(case.value.dtype)
    grads = cuda_backward.backward(warp_host.inputs_of(case), grad_output, of_reference_points=True)
    named = {name: getattr(grads, name) for name in NAMES}
    return {name: grad for name, grad in named.items() if grad is not None}


def _assert_parity(case: Case, tolerance: float | None = None) -> None:
    found = _differentiated(case)
    _, exact = gradients(reference, case, torch.float64)
    assert found.keys() == exact.keys()
    for name, grad in found.items():
        given_tensor = case.tensors()[name]
        assert (grad.shape, grad.dtype) == (given_tensor.shape, given_tensor.dtype), name
        try:
            assert_close(grad.float(), exact[name], tolerance or TOLERANCES[case.value.dtype])
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("same_loc", [False, True], ids=["own offsets", "same_loc"])
@pytest.mark.parametrize("channels", [8, 32, 64])
def test_gradients_are_those_of_the_reference(
    dtype: torch.dtype, kind: Kind, boxes: bool, same_loc: bool, channels: int
) -> None:
    case = random_case(kind, channels=channels, boxes=boxes, same_loc=same_loc)
    _assert_parity(warp_host.narrowed(case, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_offsets_in_float32_get_gradients_in_float32(dtype: torch.dtype, kind: Kind) -> None:
    case = random_case(kind, shapes=((60, 160),))
    _assert_parity(warp_host.narrowed(case, dtype, float_offsets=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [94, 31], ids=["all tokens", "last levels"])
@pytest.mark.parametrize("heads", [8, 3])
def test_queries_in_tiles_get_their_gradients(kind: Kind, queries: int, heads: int) -> None:
    _assert_parity(random_case(kind, queries=queries, heads=heads))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shapes", [((1, 1),), ((1, 9),), ((9, 1),), ((1, 1), (1, 4), (5, 1), (2, 2), (3, 4))], ids=str
)
@pytest.mark.parametrize("points", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("same_loc", [False, True], ids=["own offsets", "same_loc"])
def test_unusual_levels_and_points_are_handled(
    kind: Kind, shapes: Shapes, points: int, same_loc: bool
) -> None:
    for channels in (8, 32):
        case = random_case(
            kind, shapes=shapes, points=points, channels=channels, boxes=True, same_loc=same_loc
        )
        _assert_parity(case)


@pytest.mark.parametrize("kind", KINDS)
def test_map_edges_give_the_reference_gradients(kind: Kind) -> None:
    width, height = 8, 4  # powers of two: the positions are exact
    edges = [(x, y) for x in (-1.0, -0.5, 0.0, 7.0, 7.5, 8.0) for y in (-1.0, -0.5, 1.0, 3.5, 4.0)]
    case = random_case(kind, queries=len(edges), points=1, shapes=((height, width),))
    references = (torch.tensor(edges) + 0.5) / torch.tensor([width, height])
    case = replace(
        case,
        reference_points=references[None, :, None].expand(2, -1, -1, -1),
        sampling_offsets=torch.zeros_like(case.sampling_offsets),
    )
    _assert_parity(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("of", ["offsets", "references"])
def test_positions_that_are_not_finite_have_no_gradients(kind: Kind, odd: float, of: str) -> None:
    case = random_case(kind, boxes=True)
    offsets, references = case.sampling_offsets.clone(), case.reference_points.clone()
    if of == "offsets":
        offsets[:, ::2, :, 1, 2, 1] = odd
    else:
        references[:, ::2, 1, 3] = odd
    case = replace(case, sampling_offsets=offsets, reference_points=references)
    _assert_parity(case)
    found = _differentiated(case)
    assert all(grad.isfinite().all() for grad in found.values())
    assert found["sampling_offsets"][:, ::2, :, 1, 2].count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_points_outside_give_no_gradients_but_of_their_logits(kind: Kind) -> None:
    case = random_case(kind)
    case = replace(case, reference_points=case.reference_points + 100.0)
    assert all(grad.count_nonzero() == 0 for grad in _differentiated(case).values())
    half = case.reference_points.clone()
    half[:, :, :2] -= 100.0  # the first two levels' points are inside
    _assert_parity(replace(case, reference_points=half))


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_no_point_reads_do_not_matter(kind: Kind) -> None:
    case = random_case(kind, shapes=((2, 2),), points=1, queries=2, batch=1, heads=1)
    value = torch.full_like(case.value, math.nan)
    value[:, 2] = 1.0  # only the lower left pixel is read
    corner = torch.tensor([[0.0, 1.0], [9.0, 9.0]]).view(1, 2, 1, 2)
    still = torch.zeros_like(case.sampling_offsets)
    key = None if case.key is None else value.clone()
    case = replace(case, value=value, key=key, reference_points=corner, sampling_offsets=still)
    found = _differentiated(case)
    assert all(grad.isfinite().all() for grad in found.values())
    assert found["value"][:, [0, 1, 3]].count_nonzero() == 0
    assert torch.allclose(found["value"][0, 2, 0], 0.25 * _grad_output(case)[0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_give_finite_gradients(kind: Kind) -> None:
    case = random_case(kind)
    field = "logits" if kind == "plain" else "query"
    case = replace(case, **{field: case.tensors()[field] * 1e3})  # type: ignore[arg-type]
    _assert_parity(case, 1e-2)


def test_logits_of_minus_infinity_have_no_weight() -> None:
    case = random_case("plain")
    assert case.logits is not None
    logits = case.logits.clone()
    logits[:, :, :, [0, 1, 7]] = -math.inf
    case = replace(case, logits=logits)
    _assert_parity(case)
    assert all(grad.isfinite().all() for grad in _differentiated(case).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("deterministic")
def test_deterministic_gradients_are_those_of_the_reference(kind: Kind) -> None:
    for boxes in (False, True):
        case = random_case(kind, boxes=boxes, queries=29)
        _assert_parity(case)
        _assert_parity(case.mapped(torch.float16), 8e-3)
    _assert_parity(replace(case, value=case.value * 1e-15, key=None))
    _assert_parity(replace(case, value=case.value * 1e3), 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("deterministic")
def test_deterministic_sums_do_not_depend_on_the_order(kind: Kind) -> None:
    case = random_case(kind, queries=37, shapes=((3, 2), (1, 1)))
    order = torch.randperm(37, generator=torch.Generator().manual_seed(2))
    moved = {
        name: tensor if name in {"value", "key"} else tensor[:, order]
        for name, tensor in case.tensors().items()
    }
    shuffled = replace(case, **moved)  # type: ignore[arg-type]
    grad_output = _grad_output(case)
    sums = []
    for one, grads in ((case, grad_output), (shuffled, grad_output[:, order])):
        found = cuda_backward.backward(warp_host.inputs_of(one), grads, of_reference_points=False)
        sums.append(found.value)
        assert found.reference_points is None
    assert torch.equal(*sums)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_gradients_of_infinite_inputs_are_nan() -> None:
    case = random_case("shared keys")
    broken = case.value.clone()
    broken[0, 0, 0, 0] = math.inf
    assert _differentiated(replace(case, value=broken))["value"].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_no_images_or_queries_give_zeros(kind: Kind, batch: int, queries: int) -> None:
    case = random_case(kind, batch=batch, queries=queries)
    for name, grad in _differentiated(case).items():
        assert grad.shape == case.tensors()[name].shape
        assert grad.count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_kernel_the_reference_gives_the_gradients(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr(cuda, "_loaded", lambda _variant, _device: None)
    for dtype in (torch.float32, torch.float16):
        _assert_parity(warp_host.narrowed(random_case(kind), dtype))


@pytest.mark.filterwarnings("default")  # torch's own tracing code warns
@pytest.mark.parametrize("kind", KINDS)
def test_operators_pass_opcheck_with_the_gpu_s_code(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr(cpu, "forward", cuda.forward)
    monkeypatch.setattr(cpu, "backward", cuda_backward.backward)
    case = random_case(kind, queries=5).mapped(torch.float32, leaf=True)
    shapes = [side for shape in case.spatial_shapes for side in shape]
    located = (shapes, case.reference_points, case.sampling_offsets)
    if case.query is None:
        name, arguments = "ms_deform_attn", (case.value, *located, case.logits)
    else:
        name = "key_aware_deform_attn"
        arguments = (case.query, case.key, case.value, *located)  # type: ignore[assignment]
    torch.library.opcheck(getattr(torch.ops.lite_detr, name).default, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_uses_the_backward_kernel(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    monkeypatch.setattr(cpu, "forward", cuda.forward)
    monkeypatch.setattr(cpu, "backward", cuda_backward.backward)
    case = random_case(kind)
    _, found = gradients(operators, case, torch.float32)
    _, exact = gradients(reference, case, torch.float64)
    assert found.keys() == exact.keys()
    for name, grad in found.items():
        assert_close(grad, exact[name])


def test_structs_mirror_those_of_the_kernel(warp: HostWarp) -> None:
    case = random_case("plain")
    inputs = warp_host.inputs_of(case)
    variant = variant_of(inputs, backward=True)
    grads = cuda_backward._empty_gradients(inputs, variant, True)
    call = BackwardCall(inputs, variant, _grad_output(case), grads, None)
    size = warp.library(torch.float32).lite_detr_size_of_backward_call()
    assert ctypes.sizeof(call.struct) == size


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_synchronisation_is_found(warp: HostWarp, missing: int) -> None:
    case = random_case("shared keys", heads=8)
    inputs = warp_host.inputs_of(case)
    variant = variant_of(inputs, backward=True)
    grads = cuda_backward._empty_gradients(inputs, variant, True)
    call = BackwardCall(inputs, variant, _grad_output(case), grads, None)
    careless = warp.library(torch.float32).lite_detr_host_differentiate_carelessly
    struct, sizes = ctypes.byref(call.struct), warp_host.sizes_of(variant)
    warps = warp_host.warps_of(variant, call.grid)
    assert careless(struct, sizes, *warps, missing) > 0
    assert careless(struct, sizes, *warps, 99) == 0


_levels = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)


@given(
    dtype=st.sampled_from(tuple(TOLERANCES)),
    kind=st.sampled_from(KINDS),
    shapes=_levels,
    batch=st.integers(1, 2),
    heads=st.integers(1, 9),
    channels=st.sampled_from([8, 32, 64]),
    queries=st.integers(1, 17),
    points=st.integers(1, 7),
    boxes=st.booleans(),
    same_loc=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
    ],
)
def test_any_shapes_give_the_reference_gradients(
    dtype: torch.dtype, kind: Kind, shapes: list[tuple[int, int]], seed: int, **sizes: Any
) -> None:
    case = random_case(kind, shapes=tuple(shapes), seed=seed, **sizes)
    _assert_parity(warp_host.narrowed(case, dtype), 3 * TOLERANCES[dtype])
