"""The kernel that adds a residual and normalises: its arithmetic, its arguments, its operator."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.kernels import sass
from model import VARIANTS, build_detector
from model.native.library import BuildError
from model.network import cuda_fusion, onednn
from model.network.inference import prepare_for_inference
from model.network.linear import PackedLinear, project_and_norm
from model.ops import cuda, cuda_ahead, cuda_norm, nvrtc
from model.ops.add_norm import add_layer_norm
from model.ops.cuda_norm import NormCall, NormCallStruct, NormVariant
from tests.model.ops.warp_host import HostWarp

EPS = 1e-5
# Of a result that is about 1: the last rounding, and float32 sums of up to 1,024 numbers.
TOLERANCES = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
INSTRUCTIONS = {torch.float32: 145, torch.float16: 170, torch.bfloat16: 220}  # of a warp, sm_90
TYPES = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)

Given = tuple[Tensor, Tensor, Tensor, Tensor, float]


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch, warp: HostWarp) -> list[NormCall]:
    """Runs launches on the CPU, and keeps them."""
    launched: list[NormCall] = []

    def launch(_function: object, call: NormCall, _device: torch.device) -> None:
        launched.append(call)
        x = call.tensors[0]
        warp.add_norm(NormVariant(x.dtype, x.shape[-1]), call)

    monkeypatch.setattr(cuda, "_loaded", lambda _kernel, _device: object())
    monkeypatch.setattr(cuda, "_launch", launch)
    return launched


def given(
    width: int, dtype: torch.dtype, *, batch: int = 2, count: int = 7, scale: float = 1.0
) -> Given:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    x, residual = scale * normal(batch, count, width), scale * normal(batch, count, width) + 0.3
    weight, bias = 1 + 0.1 * normal(width), 0.1 * normal(width)
    return x.to(dtype), residual.to(dtype), weight.to(dtype), bias.to(dtype), EPS


def exact(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    total = x.double() + residual.double()
    return F.layer_norm(total, x.shape[-1:], weight.double(), bias.double(), eps)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(
        found.double(), expected, atol=TOLERANCES[found.dtype], rtol=TOLERANCES[found.dtype]
    )


@TYPES
@pytest.mark.parametrize("width", [8, 96, 128, 256, 1024])
def test_kernel_gives_the_formula(on_host: list[NormCall], dtype: torch.dtype, width: int) -> None:
    arguments = given(width, dtype)
    output = cuda_norm.forward(*arguments)
    assert output.dtype == dtype and len(on_host) == 1
    assert_close(output, exact(*arguments))


@TYPES
def test_large_means_lose_no_precision(on_host: list[NormCall], dtype: torch.dtype) -> None:
    x, residual, weight, bias, eps = given(256, dtype, scale=0.25)
    arguments = (x + 64, residual - 32, weight, bias, eps)
    # float32 rounds the sums, which are about 32, and so does torch.
    rounded = 3e-5 if dtype == torch.float32 else None
    torch.testing.assert_close(
        cuda_norm.forward(*arguments).double(),
        exact(*arguments),
        atol=rounded or TOLERANCES[dtype],
        rtol=rounded or TOLERANCES[dtype],
    )
    assert on_host


@TYPES
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_become_nan_and_others_stay(
    on_host: list[NormCall], dtype: torch.dtype, odd: float
) -> None:
    x, residual, weight, bias, eps = given(256, dtype)
    x[0, 2, 5] = odd
    residual[1, 3, 200] = odd
    output = cuda_norm.forward(x, residual, weight, bias, eps)
    expected = exact(x, residual, weight, bias, eps)
    assert torch.equal(output.isnan(), expected.isnan())
    assert output[0, 2].isnan().all() and output[1, 3].isnan().all()
    finite = ~expected.isnan()
    assert_close(output[finite], expected[finite])
    assert on_host


def test_sums_beyond_float16_stay_finite(on_host: list[NormCall]) -> None:
    x, residual, weight, bias, eps = given(256, torch.float16)
    x, residual = ((one * 20_000).clamp(-60_000, 60_000) for one in (x, residual))
    x[0, 0, 0] = residual[0, 0, 0] = 60_000  # torch rounds the sum to infinity
    output = cuda_norm.forward(x, residual, weight, bias, eps)
    assert_close(output, exact(x, residual, weight, bias, eps))
    assert on_host


def test_large_float32_rows(on_host: list[NormCall]) -> None:
    x, residual, weight, bias, eps = given(256, torch.float32)
    for size in (1e9, 1e18):
        arguments = (size * torch.sign(x), torch.zeros_like(residual), weight, bias, eps)
        assert_close(cuda_norm.forward(*arguments), exact(*arguments))
    # The mean does not overflow, but the variance does.
    output = cuda_norm.forward(1e37 * torch.sign(x), torch.zeros_like(x), weight, bias, eps)
    assert torch.equal(output, bias.expand_as(output))
    assert len(on_host) == 3


@TYPES
def test_parts_of_the_tokens_of_each_image_are_not_copied(
    on_host: list[NormCall], dtype: torch.dtype
) -> None:
    _, tokens, weight, bias, _ = given(256, dtype, batch=3, count=11)
    for part in (slice(4, None), slice(None, 4), slice(2, 9)):
        residual = tokens[:, part]
        x = given(256, dtype, batch=3, count=residual.shape[1])[0]
        output = cuda_norm.forward(x, residual, weight, bias, EPS)
        assert_close(output, exact(x, residual, weight, bias, EPS))
        assert on_host[-1].tensors[1].data_ptr() == residual.data_ptr()
        assert on_host[-1].struct.residual_stride == 11


@TYPES
def test_inputs_of_any_layout_and_type(on_host: list[NormCall], dtype: torch.dtype) -> None:
    x, residual, weight, bias, _ = given(256, dtype)
    plain = exact(x, residual, weight, bias, EPS)
    shifted = torch.empty(residual.numel() + 1, dtype=dtype)[1:].view_as(residual).copy_(residual)
    transposed = residual.transpose(1, 2).contiguous().transpose(1, 2)
    other = x.transpose(0, 1).contiguous().transpose(0, 1)
    for one, added in ((other, residual), (x, shifted), (x, transposed), (x, residual.float())):
        output = cuda_norm.forward(one, added, weight.float(), bias, EPS)
        assert output.is_contiguous() and output.dtype == dtype
        assert_close(output, plain)
    repeated = residual[:1].expand(2, -1, -1)
    assert_close(
        cuda_norm.forward(x, repeated, weight, bias, EPS), exact(x, repeated, weight, bias, EPS)
    )
    assert len(on_host) == 5


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(20, torch.float32), (8 * 37, torch.float32), (2048, torch.float32), (256, torch.float64)],
)
def test_other_sizes_and_types_are_computed_by_torch(
    on_host: list[NormCall], width: int, dtype: torch.dtype
) -> None:
    arguments = given(width, dtype)
    output = cuda_norm.forward(*arguments)
    torch.testing.assert_close(output.double(), exact(*arguments), atol=1e-5, rtol=1e-5)
    assert on_host == []


def test_no_rows_need_no_kernel(on_host: list[NormCall]) -> None:
    x, residual, weight, bias, eps = given(256, torch.float16, count=0)
    assert cuda_norm.forward(x, residual, weight, bias, eps).shape == (2, 0, 256)
    assert on_host == []


def test_without_the_kernel_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> object:
        raise BuildError("no NVRTC here")

    monkeypatch.setattr(cuda._Kernels, "functions", {})
    monkeypatch.setattr(cuda._Kernels, "failures", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda, "_load", refuse)
    arguments = given(256, torch.float32)
    with pytest.warns(RuntimeWarning, match=r"sum and layer norm float32, 256 .* slower: no NVRTC"):
        output = cuda_norm.forward(*arguments)
    assert_close(output, exact(*arguments))
    assert torch.equal(cuda_norm.forward(*arguments), output)


def test_struct_mirrors_that_of_the_kernel(warp: HostWarp) -> None:
    size = warp.library(torch.float32).lite_detr_size_of_norm_call()
    assert ctypes.sizeof(NormCallStruct) == size


@pytest.mark.filterwarnings("default")  # torch's own tracing code warns
def test_operator_passes_opcheck() -> None:
    torch.library.opcheck(torch.ops.lite_detr.add_layer_norm.default, given(32, torch.float32))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own tracing code warns
def test_tracing_for_torch_compile_finds_one_whole_graph() -> None:
    x, residual, *_ = given(32, torch.float32)
    norm = nn.LayerNorm(32).requires_grad_(False)
    traced = torch.compile(add_layer_norm, backend="eager", fullgraph=True)
    assert torch.equal(traced(x, residual, norm), add_layer_norm(x, residual, norm))


def test_gradients_are_refused() -> None:
    x, residual, weight, bias, eps = given(32, torch.float32)
    output = torch.ops.lite_detr.add_layer_norm(x.requires_grad_(), residual, weight, bias, eps)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        output.sum().backward()


def test_layers_on_a_gpu_use_it_in_inference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_fusion, "can_multiply", lambda *_: True)
    monkeypatch.setattr(onednn, "is_available", lambda *_: False)
    x, residual, *_ = given(32, torch.float32)
    layer = PackedLinear(torch.randn(32, 32), torch.randn(32), torch.float32)
    norm = nn.LayerNorm(32)
    calls: list[tuple[int, ...]] = []

    def count(*arguments: Tensor) -> Tensor:
        calls.append(arguments[0].shape)
        return add_layer_norm(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("model.network.linear.add_layer_norm", count)
    with torch.inference_mode():
        fused = project_and_norm(x, layer, residual, norm)
        with cuda_fusion.disabled():
            in_passes = project_and_norm(x, layer, residual, norm)
    assert calls == [(2, 7, 32)]
    torch.testing.assert_close(fused, in_passes)
    project_and_norm(x, layer, residual, norm).sum().backward()
    assert len(calls) == 1


def test_a_network_on_a_cpu_does_not_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.network.linear.add_layer_norm", None)  # calling it would fail
    config = VARIANTS["lite-dino-r18-small"]
    network = prepare_for_inference(build_detector(config).eval())
    with torch.inference_mode():
        network(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool))


@TYPES
def test_kernels_of_all_models_are_compiled_ahead(dtype: torch.dtype) -> None:
    for config in VARIANTS.values():
        variants = cuda_ahead.norms_of(config)
        assert NormVariant(dtype, config.d_model) in variants
        x = torch.empty(1, 1, config.d_model, dtype=dtype)
        assert cuda_norm.takes(x, x[0, 0])


@pytest.mark.parametrize(
    "architecture",
    [90, *(pytest.param(a, marks=pytest.mark.slow) for a in sass.ARCHITECTURES if a != 90)],
)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        pytest.param(torch.float32, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_kernels_keep_to_their_limits(
    tmp_path: Path, architecture: int, dtype: torch.dtype
) -> None:
    limit = INSTRUCTIONS[dtype] if architecture == 90 else 1.1 * INSTRUCTIONS[dtype]
    for width in (256, 128) if architecture == 90 else (256,):
        try:
            cost = sass.cost(NormVariant(dtype, width), architecture, tmp_path)
        except (sass.ToolMissingError, BuildError) as error:
            pytest.skip(f"the GPU kernels cannot be compiled and read here: {error}")
        assert (cost.stack_bytes, cost.spills) == (0, 0)
        assert cost.registers <= 40  # 48 warps on a multiprocessor
        assert 50 < cost.instructions <= limit


@pytest.mark.slow
def test_the_largest_width_does_not_spill(tmp_path: Path) -> None:
    try:
        cost = sass.cost(NormVariant(torch.float32, 1024), 90, tmp_path)
    except (sass.ToolMissingError, BuildError) as error:
        pytest.skip(f"the GPU kernels cannot be compiled and read here: {error}")
    assert (cost.stack_bytes, cost.spills) == (0, 0)


def test_the_file_of_a_kernel_depends_on_its_width(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nvrtc, "_compile", lambda *_: b"code")
    try:
        for width in (128, 256, 256):
            nvrtc.machine_code(NormVariant(torch.float16, width), (9, 0), tmp_path)
    except BuildError as error:
        pytest.skip(f"the GPU kernels cannot be compiled here: {error}")
    assert len(list(tmp_path.glob("add_norm-*.cubin"))) == 2


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@TYPES
@pytest.mark.parametrize("width", [128, 256])
def test_gpu_gives_the_formula(dtype: torch.dtype, width: int) -> None:
    arguments = given(width, dtype, batch=3, count=509)
    moved = tuple(one.cuda() if isinstance(one, Tensor) else one for one in arguments)
    output = cuda_norm.forward(*moved)  # type: ignore[arg-type]
    assert cuda.failures(torch.device("cuda")) == {}
    assert_close(output.cpu(), exact(*arguments))
    assert torch.equal(cuda_norm.forward(*moved), output)  # type: ignore[arg-type]
