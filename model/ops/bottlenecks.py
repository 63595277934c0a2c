"""A network of inverted bottlenecks on the CPU in one call; float32, without autograd.

Layer by layer, such a network spends most of its time on maps that are too large for the cache and
on starting short products. `csrc/bottlenecks.cpp` never writes the expanded maps, six times as
large as the others, and keeps its threads awake from one layer to the next.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model.ops import cpu
from model.ops.packing import Packer

STEM_CHANNELS = 32
_KERNELS = (3, 5)
_WIDTH_MULTIPLE = 16  # of expanded channels: the lanes of the widest vector


class Folded(NamedTuple):
    """A convolution with its normalisation: [C', C / groups, h, w] weights and [C'] bias."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Bottleneck:
    """A block: relu6(1x1 expansion), relu6(depthwise), 1x1 projection."""

    expand: Folded | None  # None: the depthwise convolution reads the input
    depthwise: Folded
    project: Folded
    stride: int
    residual: bool  # whether the input is added to the result

    def fits(self) -> bool:
        """Whether the kernels can compute it."""
        kernel = self.depthwise.weight.shape[2:]
        return (
            kernel[0] == kernel[1]
            and kernel[0] in _KERNELS
            and self.stride in (1, 2)
            and self.depthwise.weight.shape[0] % _WIDTH_MULTIPLE == 0
        )


class _Block(ctypes.Structure):
    """Mirror of `Block` in csrc/bottlenecks.h."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("inputs", "width", "outputs", "kernel", "stride", "residual"),
            *("expand", "expand_bias", "depthwise", "depthwise_bias", "project", "project_bias"),
            "map",
        )
    )


class _Network(ctypes.Structure):
    """Mirror of `Network` in csrc/bottlenecks.h."""

    _fields_ = (
        ("images", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width")),
        *(
            (name, ctypes.c_int64)
            for name in ("image_step", "channel_step", "row_step", "column_step")
        ),
        ("weights", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("stem", "stem_bias")),
        ("blocks", ctypes.c_void_p),
        ("block_count", ctypes.c_int64),
        ("maps", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    )


def available() -> bool:
    """Whether the kernels can be used here; see `cpu.available`."""
    return cpu.available()


class Bottlenecks:
    """Layout of a network: stem of stride 2 with relu6, then blocks.

    The weights are one tensor in the order of the kernels' reads; the layout has places only, so
    that a network may be copied and moved.
    """

    def __init__(self, stem: Folded, blocks: Sequence[Bottleneck], taps: Sequence[int]) -> None:
        """Packs the weights, which `take_weights` returns once.

        Args:
            stem: [32, 3, 3, 3].
            blocks: each of which `fits`.
            taps: numbers of the blocks whose results are returned, ascending.
        """
        self._taps = tuple(taps)
        self._packer = Packer()
        assert stem.weight.shape == (STEM_CHANNELS, 3, 3, 3)
        packed = self._packer.add
        self._stem = packed(stem.weight.permute(2, 3, 1, 0)), packed(stem.bias)
        self._blocks = (_Block * len(blocks))(*map(self._block, range(len(blocks)), blocks))
        # Of each result: its channels, and the stride from the image to it.
        self._maps = [
            (blocks[tap].project.weight.shape[0], _stride(blocks[: tap + 1])) for tap in taps
        ]

    def take_weights(self) -> Tensor:
        """The packed weights, float32 [N]."""
        return self._packer.take()

    def run(self, images: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """Float32 [B, 3, H, W] in any memory format -> the results of the taps.

        Args:
            images: H and W positive.
            weights: of `take_weights`.

        Returns:
            [B, C, h, w] each, channels last; h = ceil(H / stride).
        """
        batch, _, height, width = images.shape
        maps = [
            images.new_empty(batch, -(-height // stride), -(-width // stride), channels)
            for channels, stride in self._maps
        ]
        pointers = (ctypes.c_void_p * len(maps))(*(each.data_ptr() for each in maps))
        network = _Network(
            images.data_ptr(),
            *(batch, height, width, *images.stride()),
            weights.data_ptr(),
            *self._stem,
            *(ctypes.addressof(self._blocks), len(self._blocks)),
            ctypes.addressof(pointers),
            torch.get_num_threads(),
        )
        cpu.library().lite_detr_bottlenecks(ctypes.byref(network))
        return tuple(each.permute(0, 3, 1, 2) for each in maps)

    def _block(self, index: int, block: Bottleneck) -> _Block:
        packed, depthwise = self._packer.add, block.depthwise.weight
        width, _, kernel, _ = depthwise.shape
        outputs = block.project.weight.shape[0]
        expand = (-1, -1)
        inputs = width
        if block.expand is not None:
            inputs = block.expand.weight.shape[1]
            expand = self._packer.add_product(*_matrix(block.expand))
        return _Block(
            *(inputs, width, outputs, kernel, block.stride, block.residual),
            *expand,
            *(packed(depthwise[:, 0].permute(1, 2, 0)), packed(block.depthwise.bias)),
            *self._packer.add_product(*_matrix(block.project)),
            self._taps.index(index) if index in self._taps else -1,
        )


def _matrix(folded: Folded) -> tuple[Tensor, Tensor]:
    """A 1x1 convolution as [C', C] weights and [C'] bias."""
    return folded.weight.flatten(1), folded.bias


def _stride(blocks: Sequence[Bottleneck]) -> int:
    stride = 2  # of the stem
    for block in blocks:
        stride *= block.stride
    return stride
