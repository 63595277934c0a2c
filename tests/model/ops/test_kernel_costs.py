"""What a query costs on a GPU, counted without one, may not grow.

Registers and instructions are those of the compiled kernels, cache lines those of a model. The
passes over shared memory are counted in test_warp_layout.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from benchmarks.kernels import l1_cache, sass
from model.native.library import BuildError
from model.ops import nvrtc
from model.ops.nvrtc import Kind, Variant
from model.ops.workloads import PHOTO

TOKENS, HIGH_LEVEL_TOKENS = 22_223, 5_523

# Instructions per query: what NVRTC 13.0 gives plus a margin for other compilers. 25 of a query's,
# 104 with split points, leave out padding; a pass that zeroes it takes ten times as long.
ENCODER: dict[tuple[torch.dtype, Kind], int] = {
    (torch.float16, "plain"): 1170,
    (torch.float16, "shared_keys"): 1550,
    (torch.float16, "separate_keys"): 2300,
    (torch.bfloat16, "plain"): 1880,
    (torch.bfloat16, "shared_keys"): 2230,
    (torch.bfloat16, "separate_keys"): 3600,
    (torch.float32, "plain"): 1400,
    (torch.float32, "shared_keys"): 1760,
    (torch.float32, "separate_keys"): 2600,
}
DECODER: dict[tuple[torch.dtype, Kind], int] = {
    (torch.float16, "plain"): 1990,
    (torch.float16, "shared_keys"): 2390,
    (torch.float16, "separate_keys"): 3100,
    (torch.bfloat16, "plain"): 2830,
    (torch.bfloat16, "shared_keys"): 3230,
    (torch.bfloat16, "separate_keys"): 4700,
    (torch.float32, "plain"): 2200,
    (torch.float32, "shared_keys"): 2650,
    (torch.float32, "separate_keys"): 3500,
}
BACKWARD: dict[tuple[torch.dtype, Kind], int] = {
    (torch.float16, "plain"): 6700,
    (torch.float16, "shared_keys"): 9900,
    (torch.float16, "separate_keys"): 12_200,
    (torch.bfloat16, "plain"): 6800,
    (torch.bfloat16, "shared_keys"): 9950,
    (torch.bfloat16, "separate_keys"): 12_450,
    (torch.float32, "plain"): 5700,
    (torch.float32, "shared_keys"): 8500,
    (torch.float32, "separate_keys"): 9900,
}
OTHER_ARCHITECTURES = 1.1  # relative to sm_90

# Bytes of tokens that a query reads from L2 by the model, float16 with shared keys.
L2_BYTES = {75: 6650, 80: 6650, 86: 6650, 89: 6700, 90: 6400, 100: 6500, 120: 6400}

# Bytes of the stack and accesses to it, of one kernel: key-aware attention of bfloat16 for many
# queries keeps a number in memory from its first lines to its last ones, not in its loop.
SPILLED = {120: (8, 2)}

Used = TypeVar("Used", bound=sass.Usage)

KINDS = pytest.mark.parametrize("kind", sass.KINDS)
# float16 is what a GPU runs fastest; `make test-family` compiles the other types.
DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            dtype,
            marks=[] if dtype == torch.float16 else [pytest.mark.slow, pytest.mark.family],
        )
        for dtype in nvrtc.TYPES
    ],
    ids=str,
)
# The oldest that is common and the newest; `make test-family` compiles for the others.
_SLOW_ARCHITECTURES = (80, 120)
OTHERS = pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(a, marks=[] if a in _SLOW_ARCHITECTURES else [pytest.mark.family])
        for a in sass.ARCHITECTURES
        if a != 90
    ],
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


def _cost(variant: Variant, architecture: int, cache: Path) -> sass.Cost:
    """The costs; fails if registers are spilled."""
    return _checked(sass.cost, variant, architecture, cache)


def _checked(
    read: Callable[[Variant, int, Path], Used], variant: Variant, architecture: int, cache: Path
) -> Used:
    """What `read` returns; fails if registers are spilled."""
    try:
        used = read(variant, architecture, cache)
    except (sass.ToolMissingError, BuildError) as error:
        pytest.skip(f"the GPU kernels cannot be compiled and read here: {error}")
    spilling = variant == sass.usual(torch.bfloat16, "shared_keys")
    stack_bytes, spills = SPILLED.get(architecture, (0, 0)) if spilling else (0, 0)
    assert used.stack_bytes <= stack_bytes
    if isinstance(used, sass.Cost):
        assert used.spills <= spills
    most = 65_536 // (32 * variant.warps * variant.blocks)
    assert used.registers <= most
    return used


@KINDS
@DTYPES
def test_encoder_s_kernels_keep_to_their_limits(
    cache: Path, dtype: torch.dtype, kind: Kind
) -> None:
    variant = sass.usual(dtype, kind)
    cost = _cost(variant, 90, cache)
    usual = kind != "separate_keys" or dtype == torch.float16
    assert cost.registers <= (80 if usual else 168)
    assert 500 < cost.instructions <= ENCODER[dtype, kind]


@KINDS
@DTYPES
def test_decoder_s_kernels_keep_to_their_limits(
    cache: Path, dtype: torch.dtype, kind: Kind
) -> None:
    cost = _cost(sass.of_decoder(dtype, kind), 90, cache)
    assert 500 < cost.instructions <= DECODER[dtype, kind]


@KINDS
@DTYPES
def test_backward_kernels_keep_to_their_limits(cache: Path, dtype: torch.dtype, kind: Kind) -> None:
    cost = _cost(sass.usual(dtype, kind, backward=True), 90, cache)
    assert 1000 < cost.instructions <= BACKWARD[dtype, kind]
    summing = sass.usual(dtype, kind, backward=True, deterministic=True)
    _checked(sass.usage, summing, 90, cache)


@pytest.mark.slow
@OTHERS
@KINDS
def test_kernels_of_other_architectures_keep_to_their_limits(
    cache: Path, architecture: int, kind: Kind
) -> None:
    half = torch.float16
    for variant, limit in (
        (sass.usual(half, kind), ENCODER[half, kind]),
        (sass.of_decoder(half, kind), DECODER[half, kind]),
    ):
        cost = _cost(variant, architecture, cache)
        assert 500 < cost.instructions <= OTHER_ARCHITECTURES * limit
    cost = _cost(sass.usual(half, kind, backward=True), architecture, cache)
    assert 1000 < cost.instructions <= OTHER_ARCHITECTURES * BACKWARD[half, kind]


@pytest.mark.slow
@OTHERS
@KINDS
@DTYPES
def test_no_kernel_of_any_type_spills(
    cache: Path, architecture: int, dtype: torch.dtype, kind: Kind
) -> None:
    """Without a stack there is nothing that spilled registers could be stored in."""
    variants = (
        sass.usual(dtype, kind),
        sass.of_decoder(dtype, kind),
        sass.usual(dtype, kind, backward=True),
        sass.usual(dtype, kind, backward=True, deterministic=True),
    )
    for variant in variants:
        used = _checked(sass.usage, variant, architecture, cache)
        if used.stack_bytes:
            _cost(variant, architecture, cache)


# ---------------------------------------------------------------------------- the L1 cache


def _kernel(architecture: int, cache: Path) -> l1_cache.Kernel:
    variant = sass.usual(torch.float16, "shared_keys")
    registers = _cost(variant, architecture, cache).registers
    return l1_cache.Kernel(registers, variant.warps, tiled=True)


@pytest.mark.parametrize(
    "architecture",
    [
        90,
        *(
            pytest.param(a, marks=[pytest.mark.slow, pytest.mark.family])
            for a in sass.ARCHITECTURES
            if a != 90
        ),
    ],
)
def test_tiles_of_queries_share_the_l1_cache(cache: Path, architecture: int) -> None:
    gpu = l1_cache.GPUS[architecture]
    traffic = l1_cache.traffic(_kernel(architecture, cache), gpu, PHOTO, TOKENS)
    assert traffic.hit_rate >= 0.8
    assert traffic.l2_bytes_per_query <= L2_BYTES[architecture]


def test_rows_of_queries_share_less() -> None:
    gpu = l1_cache.GPUS[90]
    rows = l1_cache.traffic(l1_cache.Kernel(96, 4, tiled=False), gpu, PHOTO, TOKENS, sampled=2)
    assert rows.hit_rate < 0.7
    tiles = l1_cache.Kernel(80, 12, tiled=True)
    few = l1_cache.traffic(tiles, gpu, PHOTO, HIGH_LEVEL_TOKENS, sampled=2)
    assert few.hit_rate > 0.7


def test_cache_replaces_the_line_used_least_recently() -> None:
    cache = l1_cache._Cache(lines=2, pieces_of_line=2)
    cache.read([0, 1, 0, 1])  # both halves of a line
    assert (cache.pieces, cache.misses) == (4, 2)
    cache.read([2, 0, 4, 0])  # line 1, line 0 again, line 2 instead of line 1
    assert cache.misses == 4
    cache.read([2])
    assert cache.misses == 5


def test_resources_limit_the_resident_blocks() -> None:
    gpu = l1_cache.GPUS[90]
    assert l1_cache.Kernel(80, 12, tiled=True).resident_blocks(gpu) == 2
    assert l1_cache.Kernel(168, 12, tiled=True).resident_blocks(gpu) == 1  # registers
    assert l1_cache.Kernel(32, 4, tiled=True, shared_bytes=16_384).resident_blocks(gpu) == 3
    assert l1_cache.Kernel(80, 12, tiled=True).cache_lines(gpu) == 156 * 8
