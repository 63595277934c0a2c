"""Queries in tiles, slots of shared memory without bank conflicts, and synchronisation."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import l1_cache
from model.ops import cuda_call, reference
from tests.model.ops import attention_cases, warp_host
from tests.model.ops.attention_cases import KINDS, Case, Kind, Shapes, assert_close, random_case
from tests.model.ops.warp_host import HostWarp

# Level edges that no tile of 4 x 4 fits, levels smaller than a tile, one that fits exactly.
SHAPES: tuple[Shapes, ...] = (
    ((9, 7), (5, 4), (3, 3), (2, 1)),
    ((1, 1), (1, 13), (13, 1)),
    ((8, 8), (4, 4)),
    ((37, 53), (19, 27), (10, 14), (5, 7)),
)
LAYOUTS = [
    (8, 1), (16, 1), (32, 1), (32, 4), (64, 1), (64, 4), (128, 1), (256, 1)
]  # fmt: skip


def _call(shapes: Shapes, queries: int, heads: int = 1) -> cuda_call.Call:
    case = random_case("plain", shapes=shapes, queries=queries, heads=heads, batch=1, points=1)
    _, call, _ = warp_host.prepared(case)
    return call


def _order(warp: HostWarp, call: cuda_call.Call, levels: int, count: int) -> list[int]:
    query_at = warp.library(torch.float32).lite_detr_query_at
    return [query_at(ctypes.byref(call.struct), levels, number) for number in range(count)]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("first", [0, 1, -1])
def test_tiles_have_every_query_once(warp: HostWarp, shapes: Shapes, first: int) -> None:
    queries = sum(height * width for height, width in shapes[first:])
    call = _call(shapes, queries)
    tiles = sum(-(-height // 3) * -(-width // 4) for height, width in shapes[first:])
    order = _order(warp, call, len(shapes), 12 * tiles + 40)
    assert call.struct.tiled == 1
    assert sorted(query for query in order if query >= 0) == list(range(queries))
    assert set(order[12 * tiles :]) == {-1}


def test_tile_is_a_rectangle_of_neighbours(warp: HostWarp) -> None:
    shapes = ((100, 167), (50, 84))
    order = _order(warp, _call(shapes, 16_700 + 4_200), 2, 42 * 34 * 12 + 12)
    second = order[12:24]  # the second tile of the first row of tiles
    assert second == [167 * y + x for y in range(3) for x in range(4, 8)]
    assert order[-12:] == [16_700 + 84 * y + x for y in range(3) for x in range(4)]


@pytest.mark.parametrize("queries", [1, 13, 93, 95, 997])
def test_other_queries_are_computed_in_their_order(warp: HostWarp, queries: int) -> None:
    call = _call(SHAPES[0], queries)
    assert call.struct.tiled == 0
    assert _order(warp, call, 4, queries + 9) == [*range(queries), *[-1] * 9]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [8, 3], ids=["a query a warp", "rows of several queries"])
@pytest.mark.parametrize("queries", [94, 31, 2], ids=["all tokens", "last levels", "last level"])
def test_tiles_change_no_bit(
    warp: HostWarp, monkeypatch: pytest.MonkeyPatch, kind: Kind, heads: int, queries: int
) -> None:
    case = warp_host.narrowed(random_case(kind, heads=heads, queries=queries), torch.float16)
    by_tiles = warp_host.attend(warp, case)
    exact = attention_cases.attend(reference, case.mapped(torch.float64))
    assert_close(by_tiles.float(), exact, 4e-3)
    monkeypatch.setattr(cuda_call, "_MAX_TILES", 0)
    _, call, _ = warp_host.prepared(case)
    assert call.struct.tiled == 0
    assert torch.equal(warp_host.attend(warp, case), by_tiles)


def test_block_computes_a_tile() -> None:
    call = _call(((100, 167), (50, 84), (25, 42), (13, 21)), 22_223, heads=8)
    assert call.grid == (42 * 34 + 21 * 17 + 11 * 9 + 6 * 5, 1)


# ---------------------------------------------------------------------------- shared memory


def _slot(warp: HostWarp, channels: int, splits: int, point: int, row: int) -> int:
    own = ctypes.c_int()
    library = warp.library(torch.float32)
    return int(library.lite_detr_slot(channels, splits, point, row, ctypes.byref(own)))


def _own_points(warp: HostWarp, channels: int, splits: int) -> int:
    own = ctypes.c_int()
    warp.library(torch.float32).lite_detr_slot(channels, splits, 0, 0, ctypes.byref(own))
    return own.value


def _wavefronts(slots: list[int]) -> int:
    """Passes over shared memory for the 16-byte accesses of 32 lanes.

    Eight lanes are served at a time; a pass serves one slot of each of eight groups of banks.
    """
    total = 0
    for first in range(0, 32, 8):
        distinct = set(slots[first : first + 8])
        groups = [slot % 8 for slot in distinct]
        total += max(groups.count(group) for group in groups)
    return total


@pytest.mark.parametrize(("channels", "splits"), LAYOUTS)
def test_slots_are_a_permutation(warp: HostWarp, channels: int, splits: int) -> None:
    lanes = channels // 8 * splits
    points = _own_points(warp, channels, splits) * lanes
    rows = range(32 // lanes)
    slots = [_slot(warp, channels, splits, point, row) for point in range(points) for row in rows]
    assert sorted(slots) == list(range(len(slots)))


@pytest.mark.parametrize(("channels", "splits"), LAYOUTS)
def test_stores_of_places_have_no_bank_conflicts(
    warp: HostWarp, channels: int, splits: int
) -> None:
    lanes, own = channels // 8 * splits, _own_points(warp, channels, splits)
    stores = [
        [_slot(warp, channels, splits, lane % lanes * own + j, lane // lanes) for lane in range(32)]
        for j in range(own)
    ]
    assert [_wavefronts(slots) for slots in stores] == [4] * own
    if (channels, splits) == (32, 1):  # a warp is a query: 4 points a lane, corners and weights
        assert 2 * sum(map(_wavefronts, stores)) == 32


@pytest.mark.parametrize(("channels", "splits"), LAYOUTS)
def test_loads_of_places_have_no_bank_conflicts(warp: HostWarp, channels: int, splits: int) -> None:
    parts = channels // 8
    lanes, own = parts * splits, _own_points(warp, channels, splits)
    for group in (2, 4):
        for first in range(0, own * lanes - group * (splits - 1), group * splits):
            for j in range(group):
                points = [first + lane % lanes // parts * group + j for lane in range(32)]
                if max(points) >= own * lanes:
                    continue
                rows = [lane // lanes for lane in range(32)]
                slots = [
                    _slot(warp, channels, splits, point, row)
                    for point, row in zip(points, rows, strict=True)
                ]
                assert _wavefronts(slots) == 4, (group, first, j)


def _carelessly(warp: HostWarp, case: Case, missing: int) -> tuple[int, Tensor]:
    """Races and output if a warp's synchronisation of that number is missing."""
    variant, call, output = warp_host.prepared(case)
    careless = warp.library(variant.value_type).lite_detr_host_attend_carelessly
    warps = warp_host.warps_of(variant, call.grid)
    races = careless(ctypes.byref(call.struct), warp_host.sizes_of(variant), *warps, missing)
    return races, output


@pytest.mark.parametrize("kind", KINDS)
def test_missing_synchronisation_before_the_places_are_read_gives_nan(
    warp: HostWarp, kind: Kind
) -> None:
    case = random_case(kind, heads=8)
    races, output = _carelessly(warp, case, missing=0)
    assert races > 0
    assert output.isnan().all()
    assert _carelessly(warp, case, missing=99)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_missing_synchronisation_between_chunks_is_found(warp: HostWarp, kind: Kind) -> None:
    case = random_case(kind, heads=8, points=8)  # two chunks of 16 points
    assert _carelessly(warp, case, missing=1)[0] > 0
    assert _carelessly(warp, case, missing=99)[0] == 0


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_order_of_the_cache_model_is_that_of_the_kernels(warp: HostWarp, shapes: Shapes) -> None:
    queries = sum(height * width for height, width in shapes[1:])
    modelled = l1_cache.computed_order(shapes, queries, tiled=True).tolist()
    assert modelled == _order(warp, _call(shapes, queries), len(shapes), len(modelled))
