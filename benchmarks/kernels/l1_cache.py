"""A model of the L1 cache under the attention kernels, without a GPU.

    python -m benchmarks.kernels.l1_cache [--queries 22223]

The warps of the blocks that a multiprocessor runs at the same time sample level by level, in turn.
Its cache holds lines of 128 bytes, filled by sectors of 32 bytes, and replaces the one that was
used least recently. Blocks are dealt to the multiprocessors in turn, as many at a time as registers
and shared memory allow; what shared memory leaves is the cache. A few multiprocessors are computed
and stand for all. Offsets are normal around each query's own position. Not modelled: the L2 cache,
time, and which block the hardware starts next. What the numbers are worth only a GPU can show.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.ops.cuda_call import TILE_HEIGHT, TILE_WIDTH
from model.ops.workloads import PHOTO

Shapes = Sequence[tuple[int, int]]
Integers = NDArray[np.int64]

LINE_BYTES, SECTOR_BYTES = 128, 32
_RESERVED_BYTES = 1024  # of shared memory, by the driver, for each block
_KIB = 1024


@dataclass(frozen=True)
class Gpu:
    """A multiprocessor's resources, of the usual GPU of an architecture."""

    name: str
    multiprocessors: int
    cache_kib: int  # L1 and shared memory together
    shared_kib: tuple[int, ...]  # how much of it can be shared memory
    warps: int  # at most

    registers = 65_536


_LARGE = (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)
_SMALL = (0, 8, 16, 32, 64, 100)
GPUS = {
    75: Gpu("T4", 40, 96, (32, 64), 32),
    80: Gpu("A100", 108, 192, (0, 8, 16, 32, 64, 100, 132, 164), 64),
    86: Gpu("A10", 72, 128, _SMALL, 48),
    89: Gpu("L4", 58, 128, _SMALL, 48),
    90: Gpu("H200", 132, 256, _LARGE, 64),
    100: Gpu("B200", 148, 256, _LARGE, 64),
    120: Gpu("RTX 5090", 170, 128, _SMALL, 48),
}


@dataclass(frozen=True)
class Kernel:
    """What of a kernel matters to the cache; a warp computes one query at a time."""

    registers: int  # of a thread
    warps: int  # of a block
    tiled: bool
    shared_bytes: int = 4096  # of a warp
    heads: int = 8
    row_bytes: int = 64  # of a token's head: 32 channels of float16
    points: int = 4

    def resident_blocks(self, gpu: Gpu) -> int:
        """How many blocks a multiprocessor runs at the same time."""
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        shared = self.warps * self.shared_bytes + _RESERVED_BYTES
        most = max(gpu.shared_kib) * _KIB
        return min(gpu.warps // self.warps, gpu.registers // registers, most // shared)

    def cache_lines(self, gpu: Gpu) -> int:
        """Lines of L1 that shared memory leaves."""
        shared = self.resident_blocks(gpu) * (self.warps * self.shared_bytes + _RESERVED_BYTES)
        taken = min(size for size in gpu.shared_kib if size * _KIB >= shared)
        return (gpu.cache_kib - taken) * _KIB // LINE_BYTES


@dataclass(frozen=True)
class Traffic:
    """What the model counts, of all multiprocessors that were computed."""

    queries: int
    sectors: int  # requested
    misses: int  # of them, read from L2

    @property
    def hit_rate(self) -> float:
        """Share of the sectors that L1 had."""
        return 1.0 - self.misses / self.sectors

    @property
    def l2_bytes_per_query(self) -> float:
        """Bytes of tokens that a query reads from L2."""
        return self.misses * SECTOR_BYTES / self.queries


def computed_order(shapes: Shapes, queries: int, *, tiled: bool) -> Integers:
    """The queries in the order of computation, -1 for those that a tile has beyond its map.

    The formula of `csrc/tiles.cuh`; the queries are the tokens of the last levels.
    """
    if not tiled:
        return np.arange(queries)
    areas = [height * width for height, width in shapes]
    first = next(i for i in range(len(shapes)) if sum(areas[i:]) == queries)
    ordered, start = [], 0
    for height, width in shapes[first:]:
        down, across = -(-height // TILE_HEIGHT), -(-width // TILE_WIDTH)
        padded = np.full((down * TILE_HEIGHT, across * TILE_WIDTH), -1)
        padded[:height, :width] = np.arange(start, start + height * width).reshape(height, width)
        tiles = padded.reshape(down, TILE_HEIGHT, across, TILE_WIDTH).swapaxes(1, 2)
        ordered.append(tiles.reshape(-1))
        start += height * width
    return np.concatenate(ordered)


def traffic(  # noqa: PLR0913 - what the traffic depends on
    kernel: Kernel, gpu: Gpu, shapes: Shapes, queries: int, *, sampled: int = 6, seed: int = 0
) -> Traffic:
    """Runs some multiprocessors' queries through their caches.

    Args:
        kernel: its order of queries and its resources.
        gpu: the multiprocessors.
        shapes: (H, W) of each level.
        queries: the tokens of the last levels.
        sampled: how many multiprocessors are computed.
        seed: of the offsets.
    """
    order = computed_order(shapes, queries, tiled=kernel.tiled)
    missing = np.full(-len(order) % kernel.warps, -1)
    blocks = np.append(order, missing).reshape(-1, kernel.warps)
    lines, chance = kernel.cache_lines(gpu), np.random.default_rng(seed)
    done = sectors = misses = 0
    for first in np.linspace(0, gpu.multiprocessors - 1, sampled).astype(int):
        cache = _Cache(lines, max(1, LINE_BYTES // kernel.row_bytes))
        for group in _groups(blocks[first :: gpu.multiprocessors], kernel.resident_blocks(gpu)):
            done += len(group)
            for level in range(len(shapes)):
                cache.read(_addresses(kernel, shapes, queries, group, level, chance))
        sectors, misses = sectors + cache.pieces, misses + cache.misses
    of_piece = min(kernel.row_bytes, LINE_BYTES) // SECTOR_BYTES
    return Traffic(done, sectors * of_piece, misses * of_piece)


def _groups(blocks: Integers, resident: int) -> Iterator[Integers]:
    """The queries that a multiprocessor computes at the same time, one group after another."""
    for first in range(0, len(blocks), resident):
        group = blocks[first : first + resident].reshape(-1)
        yield group[group >= 0]


def _addresses(  # noqa: PLR0913, PLR0917 - what an address depends on
    kernel: Kernel,
    shapes: Shapes,
    queries: int,
    group: Integers,
    level: int,
    chance: np.random.Generator,
) -> list[int]:
    """Numbers of the aligned pieces of a line, or lines, that the group's points read, in order."""
    centres = _centres(shapes)[-queries:][group]  # [queries, 2], of 0..1
    height, width = shapes[level]
    start = sum(h * w for h, w in shapes[:level])
    offsets = chance.standard_normal((len(group), kernel.points, kernel.heads, 2))
    places = centres[:, None, None] * (width, height) - 0.5 + offsets
    corner = np.floor(places).astype(np.int64)
    steps = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
    pixels = corner[..., None, :] + steps  # [queries, points, heads, corners, 2]
    inside = np.logical_and(places > -1, places < (width, height)).all(axis=-1, keepdims=True)
    x, y = (np.where(inside, pixels[..., i], 0) for i in (0, 1))
    token = start + y.clip(0, height - 1) * width + x.clip(0, width - 1)
    row = token * kernel.heads + np.arange(kernel.heads)[:, None]
    # A warp loads one corner of one point for all heads at a time.
    flat = row.swapaxes(2, 3).reshape(-1)
    pieces = -(-kernel.row_bytes // LINE_BYTES)
    if pieces > 1:
        flat = (flat[:, None] * pieces + np.arange(pieces)).reshape(-1)
    addresses: list[int] = flat.tolist()
    return addresses


_CENTRES: dict[tuple[tuple[int, int], ...], NDArray[np.float64]] = {}


def _centres(shapes: Shapes) -> NDArray[np.float64]:
    """(x, y) of every token, 0..1."""
    key = tuple(shapes)
    if key not in _CENTRES:
        levels = []
        for height, width in shapes:
            y, x = np.mgrid[0:height, 0:width]
            levels.append(np.stack(((x + 0.5) / width, (y + 0.5) / height), axis=-1).reshape(-1, 2))
        _CENTRES[key] = np.concatenate(levels)
    return _CENTRES[key]


class _Cache:
    """Least recently used lines; counts pieces of lines that are read and that are missing.

    Two heads of float16 share a line: its halves are filled separately.
    """

    def __init__(self, lines: int, pieces_of_line: int) -> None:
        self._lines, self._pieces_of_line = lines, pieces_of_line
        self._held: dict[int, int] = {}  # line -> bits of its pieces, oldest line first
        self.pieces = self.misses = 0

    def read(self, addresses: list[int]) -> None:
        held, pieces, misses = self._held, self._pieces_of_line, 0
        for address in addresses:
            line, bit = address // pieces, 1 << address % pieces
            present = held.pop(line, None)
            if present is None:
                misses += 1
                held[line] = bit
                if len(held) > self._lines:
                    del held[next(iter(held))]
            elif present & bit:
                held[line] = present
            else:
                misses += 1
                held[line] = present | bit
        self.misses += misses
        self.pieces += len(addresses)


def main() -> None:
    """Prints hit rates for several orders of queries and sizes of blocks."""
    parser = argparse.ArgumentParser(description="L1 hits of the attention kernels, modelled.")
    parser.add_argument("--queries", type=int, default=22_223, choices=(22_223, 5_523))
    parser.add_argument("--registers", type=int, default=80)
    parser.add_argument("--architecture", type=int, default=90, choices=sorted(GPUS))
    options = parser.parse_args()
    gpu = GPUS[options.architecture]
    print(f"{gpu.name}, {options.queries} queries, float16, {options.registers} registers")
    print(f"{'order':8} {'warps':>5} {'resident':>8} {'L1 KiB':>6} {'hits':>6} {'L2 MB':>6}")
    for tiled in (False, True):
        for warps in (4, 8, 12):
            kernel = Kernel(options.registers, warps, tiled)
            found = traffic(kernel, gpu, PHOTO, options.queries)
            read = found.l2_bytes_per_query * options.queries / 1e6
            print(
                f"{'tiles' if tiled else 'rows':8} {warps:5} {kernel.resident_blocks(gpu):8} "
                f"{kernel.cache_lines(gpu) // 8:6} {found.hit_rate:6.1%} {read:6.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
