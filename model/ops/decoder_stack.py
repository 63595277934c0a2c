"""The layers of a decoder on the CPU in one call; float32, without autograd.

With a hundred queries a decoder is a long series of short products: layer by layer, starting them
takes longer than computing them. `csrc/decoder.cpp` runs all layers on threads that stay awake.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ops import cpu
from model.ops.packing import Affine, NormPlace, Packer, ProductPlace

_BOX_PRODUCTS = 3


@dataclass(frozen=True)
class StackedLayer:
    """The parameters of one layer, in the order of computation.

    d: channels of a query, a multiple of 32, so that halves of them fill vectors. M, L, P: heads,
    levels, points.
    """

    query_key: Affine  # [2 * d, d]
    value: Affine
    attended: Affine  # of the self-attention's result
    after_attention: Affine
    memory: Affine  # what is sampled of the memory
    offsets: Affine  # [M * L * P * 2, d]
    scores: Affine  # queries [d, d] or logits [M * L * P, d]
    sampled: Affine  # of the cross-attention's result
    after_sampling: Affine
    widen: Affine
    narrow: Affine
    after_feed_forward: Affine
    box: tuple[Affine, ...]  # three layers


@dataclass(frozen=True)
class StackShape:
    """What the parameters do not tell: heads, levels and points of the attention, constants."""

    heads: int
    levels: int
    points: int
    key_aware: bool
    eps: float  # of the inverse sigmoid
    norm_eps: float


_NORMS = ("after_attention", "after_sampling", "after_feed_forward")
_PARTS = (
    *("query_key", "value", "attended", "after_attention", "memory", "offsets", "scores"),
    *("sampled", "after_sampling", "widen", "narrow", "after_feed_forward"),
)


class _Layer(ctypes.Structure):
    """Mirror of `DecoderLayer` in csrc/decoder.h."""

    _fields_ = (
        *((name, NormPlace if name in _NORMS else ProductPlace) for name in _PARTS),
        ("box", ProductPlace * _BOX_PRODUCTS),
    )


class _Decoder(ctypes.Structure):
    """Mirror of `Decoder` in csrc/decoder.h."""

    _fields_ = (
        *(("weights", ctypes.c_void_p), ("layers", ctypes.c_void_p)),
        *(("layer_count", ctypes.c_int64), ("position", ProductPlace * 2)),
        *(("frequencies", ctypes.c_int64), ("last", NormPlace), ("has_last", ctypes.c_int64)),
        *(("classes", ProductPlace), ("class_count", ctypes.c_int64)),
        *((name, ctypes.c_int64) for name in ("channels", "heads", "feed_forward")),
        *((name, ctypes.c_int64) for name in ("levels", "points", "key_aware")),
        ("spatial_shapes", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "queries", "tokens")),
        *((name, ctypes.c_void_p) for name in ("memory", "padding", "memory_values", "content")),
        ("content_step", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("box_logits", "query_ratios", "box_ratios")),
        *((name, ctypes.c_float) for name in ("eps", "norm_eps")),
        *((name, ctypes.c_void_p) for name in ("logits", "predicted")),
        ("threads", ctypes.c_int64),
    )


class DecoderStack:
    """Layout of a decoder; its weights are one tensor, so that a network may be copied and moved.

    Args:
        layers: of the decoder, each with the same sizes.
        position: the two linear layers from an encoded box to a position, [d, 2 * d] and [d, d].
        frequencies: [d / 2], by which the angles of an encoded coordinate are divided.
        last: norm of the last layer's queries, or None.
        classes: [C, d], the class head of the last layer.
        shape: of the attention.
    """

    def __init__(  # noqa: PLR0913 - by keyword
        self,
        layers: Sequence[StackedLayer],
        *,
        position: tuple[Affine, Affine],
        frequencies: Tensor,
        last: Affine | None,
        classes: Affine,
        shape: StackShape,
    ) -> None:
        self._packer = Packer()
        self._shape = shape
        self._feed_forward, self._channels = layers[0].widen.weight.shape
        self._position = (ProductPlace * 2)(*map(self._packer.product, position))
        self._frequencies = self._packer.add(frequencies)
        self._last = None if last is None else self._packer.norm(last)
        self._classes, self._class_count = self._packer.product(classes), len(classes.weight)
        self._layers = (_Layer * len(layers))(*map(self._layer, layers))

    def take_weights(self) -> Tensor:
        """The packed weights, float32 [N]."""
        return self._packer.take()

    def run(  # noqa: PLR0913 - the parts of queries and memory, by keyword
        self,
        weights: Tensor,
        *,
        content: Tensor,
        box_logits: Tensor,
        memory: Tensor,
        padding: Tensor | None,
        spatial_shapes: Sequence[tuple[int, int]],
        query_ratios: Tensor,
        box_ratios: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Runs the layers on float32 tensors.

        Args:
            weights: of `take_weights`.
            content: [B, Q, d]; may be one image's, expanded.
            box_logits: [B, Q, 4], boxes cxcywh before the sigmoid.
            memory: [B, S, d].
            padding: bool [B, S], True where the memory is not sampled; None: all of it is.
            spatial_shapes: (H, W) of each level.
            query_ratios: [B, 1, 4], see `Geometry`.
            box_ratios: [B, 1, L, 4], see `Geometry`.

        Returns:
            Class logits [B, Q, C] and boxes [B, Q, 4] of the last layer.
        """
        batch, queries, channels = content.shape
        if content.stride()[1:] != (channels, 1):
            content = content.contiguous()
        memory, *arrays = (
            each.contiguous() for each in (memory, box_logits, query_ratios, box_ratios)
        )
        padding = None if padding is None else padding.contiguous()
        values = memory.new_empty(len(self._layers), *memory.shape)
        logits = box_logits.new_empty(batch, queries, self._class_count)
        predicted = torch.empty_like(arrays[0])
        shapes = (ctypes.c_int64 * (2 * len(spatial_shapes)))(*sum(spatial_shapes, ()))
        shape = self._shape
        call = _Decoder(
            *(weights.data_ptr(), ctypes.addressof(self._layers), len(self._layers)),
            *(self._position, self._frequencies, self._last or NormPlace(), self._last is not None),
            *(self._classes, self._class_count, channels, shape.heads, self._feed_forward),
            *(shape.levels, shape.points, shape.key_aware, ctypes.addressof(shapes)),
            *(batch, queries, memory.shape[1], memory.data_ptr()),
            *(None if padding is None else padding.data_ptr(), values.data_ptr()),
            *(content.data_ptr(), content.stride(0), *(each.data_ptr() for each in arrays)),
            *(shape.eps, shape.norm_eps, logits.data_ptr(), predicted.data_ptr()),
            torch.get_num_threads(),
        )
        if predicted.numel() > 0:
            cpu.library().lite_detr_decoder(ctypes.byref(call))
        return logits, predicted

    def _layer(self, layer: StackedLayer) -> _Layer:
        parts = [
            self._packer.norm(part) if name in _NORMS else self._packer.product(part)
            for name, part in ((name, getattr(layer, name)) for name in _PARTS)
        ]
        return _Layer(*parts, (ProductPlace * _BOX_PRODUCTS)(*map(self._packer.product, layer.box)))
