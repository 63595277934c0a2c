"""Which calls use the GPU's kernels, and the arguments that the kernels get."""

from __future__ import annotations

import ctypes
import warnings
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model import ops
from model.native.library import BuildError
from model.ops import cpu, cuda, operators, reference
from model.ops.cuda_call import Call, CallStruct, variant_of
from tests.model.ops import warp_host
from tests.model.ops.attention_cases import (
    KINDS,
    Case,
    Kind,
    assert_close,
    attend,
    gradients,
    random_case,
)
from tests.model.ops.warp_host import HostWarp


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda._Kernels, "functions", {})
    monkeypatch.setattr(cuda._Kernels, "failures", {})
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def _inputs(case: Case) -> cpu.Inputs:
    shapes = [side for shape in case.spatial_shapes for side in shape]
    located = (case.reference_points, case.sampling_offsets)
    return cpu.Inputs(case.value, *located, shapes, case.query, case.key, case.logits)


def _on_gpu(case: Case) -> Case:
    """The case with fake tensors of a GPU; under FakeTensorMode."""
    fakes = {
        name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
        for name, t in case.tensors().items()
    }
    return replace(case, **fakes)  # type: ignore[arg-type]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    for name, module in (("operators", operators), ("reference", reference)):
        for function in ("ms_deform_attn", "key_aware_deform_attn"):

            def spy(*args: object, _name: str = name) -> object:
                calls.append(_name)
                value = next(a for a in args if isinstance(a, torch.Tensor) and a.dim() == 4)
                return value.new_empty(0)

            monkeypatch.setattr(module, function, spy)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_inference_on_a_gpu_uses_the_operators(
    called: list[str], kind: Kind, dtype: torch.dtype
) -> None:
    with FakeTensorMode():
        attend(ops, _on_gpu(random_case(kind).mapped(dtype)))
    assert called == ["operators"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_a_gpu_uses_the_operators(called: list[str], kind: Kind) -> None:
    with FakeTensorMode():
        case = _on_gpu(random_case(kind))
        case.value.requires_grad_()
        attend(ops, case)
    assert called == ["operators"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_a_gpu_can_use_the_reference(called: list[str], kind: Kind) -> None:
    ops.select_implementation("reference")
    try:
        with FakeTensorMode():
            case = _on_gpu(random_case(kind))
            case.value.requires_grad_()
            attend(ops, case)
    finally:
        ops.select_implementation("auto")
    assert called == ["reference"]


@pytest.mark.parametrize(
    "case",
    [
        random_case("plain", channels=24),
        random_case("plain", channels=4),
        random_case("plain", shapes=((1, 1),) * 9),
        random_case("plain").mapped(torch.float64),
    ],
    ids=["24 channels", "4 channels", "9 levels", "float64"],
)
def test_calls_beyond_the_kernels_take_the_reference(called: list[str], case: Case) -> None:
    with FakeTensorMode():
        attend(ops, _on_gpu(case))
    assert called == ["reference"]


def test_images_beyond_32_bits_of_rows_take_the_reference(called: list[str]) -> None:
    side = 2**15
    with FakeTensorMode():
        for tokens_high, expected in ((side // 256, "operators"), (side // 128, "reference")):
            value = torch.empty(1, tokens_high * side, 8, 32, dtype=torch.half, device="cuda")
            located = (torch.empty(1, 3, 1, 2, device="cuda"),)
            offsets = torch.empty(1, 3, 8, 1, 4, 2, device="cuda")
            logits = torch.empty(1, 3, 8, 4, device="cuda")
            ops.ms_deform_attn(value, [(tokens_high, side)], *located, offsets, logits)
            assert called.pop() == expected


@pytest.mark.parametrize(("queries", "expected"), [(2**20, "operators"), (2**22, "reference")])
def test_queries_beyond_31_bits_of_rows_take_the_reference(
    called: list[str], queries: int, expected: str
) -> None:
    with FakeTensorMode():
        value = torch.empty(1, 6, 8, 256, device="cuda")
        located = (torch.empty(1, queries, 1, 2, device="cuda"),)
        offsets = torch.empty(1, queries, 8, 1, 4, 2, device="cuda")
        logits = torch.empty(1, queries, 8, 4, device="cuda")
        ops.ms_deform_attn(value, [(2, 3)], *located, offsets, logits)
    assert called == [expected]


def test_reference_can_be_selected_on_a_gpu(called: list[str]) -> None:
    ops.select_implementation("reference")
    try:
        with FakeTensorMode():
            attend(ops, _on_gpu(random_case("plain")))
        assert ops.implementation_name("cuda") == "reference"
    finally:
        ops.select_implementation("auto")
    assert called == ["reference"]


@pytest.mark.parametrize("kind", KINDS)
def test_operators_know_the_output_of_a_gpu_call(kind: Kind) -> None:
    with FakeTensorMode():
        output = attend(operators, _on_gpu(random_case(kind).mapped(torch.float16)))
    assert output.shape == (2, 11, 96)
    assert (output.dtype, output.device.type) == (torch.float16, "cuda")


@pytest.mark.parametrize("kind", KINDS)
def test_gpu_operators_are_registered(kind: Kind) -> None:
    name = "ms_deform_attn" if kind == "plain" else "key_aware_deform_attn"
    for one in (name, f"{name}_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lite_detr::{one}", "CUDA")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [False, True], ids=["one type", "mixed types"])
def test_forward_passes_all_arguments_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, warp: HostWarp, kind: Kind, mixed: bool
) -> None:
    case = warp_host.narrowed(random_case(kind, heads=8), torch.float16, float_offsets=mixed)
    if mixed:  # as float32 layers beside float16 ones would hand them over
        field = "logits" if kind == "plain" else "query"
        case = replace(case, **{field: case.tensors()[field].float()})  # type: ignore[arg-type]
    grids: list[tuple[int, int]] = []
    variant = variant_of(_inputs(case))

    def launch(_kernel: object, call: Call, _device: torch.device) -> None:
        grids.append(call.grid)
        warp.run(variant, call)

    monkeypatch.setattr(cuda, "_loaded", lambda _variant, _device: object())
    monkeypatch.setattr(cuda, "_launch", launch)
    output = cuda.forward(_inputs(case))
    assert_close(output.float(), attend(reference, case.mapped(torch.float64)), 4e-3)
    # 11 queries of 8 heads, 4 warps each, 12 warps a block (8 for separate keys); 2 images.
    assert grids == [(6 if kind == "separate keys" else 4, 2)]


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_empty_calls_need_no_kernel(batch: int, queries: int) -> None:
    case = random_case("plain", batch=batch, queries=queries)
    assert cuda.forward(_inputs(case)).shape == (batch, queries, 96)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_kernel_one_warning_is_given_and_the_reference_computes(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    def refuse(*_args: object) -> object:
        raise BuildError("no NVRTC here")

    monkeypatch.setattr(cuda, "_load", refuse)
    case = random_case(kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = [cuda.forward(_inputs(case)) for _ in range(3)]
    (warning,) = [str(one.message) for one in caught]
    assert str(variant_of(_inputs(case))) in warning
    assert warning.endswith("slower: no NVRTC here")
    assert all(torch.equal(output, attend(reference, case)) for output in outputs)


def test_each_kernel_has_its_own_name_in_the_log() -> None:
    names = {
        str(variant_of(_inputs(case.mapped(dtype))))
        for case in [*map(random_case, KINDS), random_case("plain", boxes=True)]
        for dtype in (torch.float32, torch.float16)
    }
    assert len(names) == 8
    name = "plain float32, 3 heads of 32 channels, 4 levels of 4 points around boxes"
    assert f"{name}, split points" in names


def test_missing_driver_is_a_build_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_index: int) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system")

    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    with pytest.raises(BuildError, match="CUDA"):
        cuda._load(variant_of(_inputs(random_case("plain"))), 0)


def test_kernel_is_loaded_once_for_a_variant_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []

    def load(_variant: object, index: int) -> object:
        loads.append(index)
        return object()

    monkeypatch.setattr(cuda, "_load", load)
    variant = variant_of(_inputs(random_case("plain")))
    kernels = [cuda._loaded(variant, torch.device("cuda", index)) for index in (0, 1, 0, 1)]
    assert loads == [0, 1]
    assert kernels[0] is kernels[2]


def test_structs_mirror_those_of_the_kernel(warp: HostWarp) -> None:
    assert ctypes.sizeof(CallStruct) == warp.library(torch.float32).lite_detr_size_of_call()


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gpu_gives_the_reference_output(kind: Kind, dtype: torch.dtype) -> None:
    case = warp_host.narrowed(random_case(kind, heads=8, queries=509), dtype)
    moved = replace(case, **{name: t.cuda() for name, t in case.tensors().items()})  # type: ignore[arg-type]
    assert ops.implementation_name("cuda") == "cuda"
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    output = attend(ops, moved)
    assert_close(output.float().cpu(), attend(reference, case.mapped(torch.float64)), tolerance)
    assert torch.equal(attend(ops, moved), output)


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("deterministic", [False, True], ids=["any order", "deterministic"])
def test_gpu_gives_the_reference_gradients(
    kind: Kind, dtype: torch.dtype, deterministic: bool
) -> None:
    case = random_case(kind, heads=8, queries=509).mapped(dtype)
    moved = replace(case, **{name: t.cuda() for name, t in case.tensors().items()})  # type: ignore[arg-type]
    _, exact = gradients(reference, case, torch.float64)
    torch.use_deterministic_algorithms(deterministic)
    try:
        found, again = (gradients(ops, moved, dtype)[1] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    for name, grad in found.items():
        assert_close(grad.float().cpu(), exact[name], 4 * tolerance)
        assert not deterministic or torch.equal(grad, again[name])
