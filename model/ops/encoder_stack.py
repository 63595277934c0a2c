"""The layers of an encoder on the CPU in one call; float32, without autograd.

`csrc/encoder.cpp` divides the tokens among threads and computes all of a layer for a few of them at
a time, so that only the tokens and their values leave the cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ops import cpu
from model.ops.packing import Affine, NormPlace, Packer, ProductPlace

_PRODUCTS = ("value", "offsets", "scores", "sampled")


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward network of two linear layers and the norm after it."""

    widen: Affine  # [W, d]
    narrow: Affine  # [d, W]
    after: Affine


@dataclass(frozen=True)
class EncoderStackLayer:
    """The parameters of one layer, in the order of computation.

    d: channels of a token, a multiple of 32. M, L, P: heads, levels, points.
    """

    value: Affine  # [d, d]
    offsets: Affine  # [M * (L or 1) * P * 2, d]
    scores: Affine  # queries [d, d] or logits [M * L * P, d]
    sampled: Affine  # of the attention's result
    after_sampling: Affine
    high: FeedForward
    low: FeedForward | None  # of the low-level tokens; None: that of the others
    updates_low: bool


@dataclass(frozen=True)
class EncoderShape:
    """What the parameters do not tell: sizes of the attention, the constant of the norms."""

    heads: int
    levels: int
    points: int
    offset_levels: int  # L, or 1: the same offsets for all levels
    key_aware: bool
    norm_eps: float


class _FeedForward(ctypes.Structure):
    """Mirror of `FeedForward` in csrc/encoder.h."""

    _fields_ = (
        *(("widen", ProductPlace), ("narrow", ProductPlace), ("after", NormPlace)),
        ("width", ctypes.c_int64),
    )


class _Layer(ctypes.Structure):
    """Mirror of `EncoderLayer` in csrc/encoder.h."""

    _fields_ = (
        *((name, ProductPlace) for name in _PRODUCTS),
        *(("after_sampling", NormPlace), ("high", _FeedForward), ("low", _FeedForward)),
        ("updates_low", ctypes.c_int64),
    )


class _Encoder(ctypes.Structure):
    """Mirror of `Encoder` in csrc/encoder.h."""

    _fields_ = (
        *(("weights", ctypes.c_void_p), ("layers", ctypes.c_void_p)),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("layer_count", "channels", "heads"),
                *("levels", "points", "offset_levels", "key_aware"),
            )
        ),
        ("spatial_shapes", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "low_tokens")),
        *((name, ctypes.c_void_p) for name in ("x", "position", "reference_points", "padding")),
        ("values", ctypes.c_void_p),
        *(("norm_eps", ctypes.c_float), ("threads", ctypes.c_int64)),
    )


class EncoderStack:
    """Layout of an encoder; its weights are one tensor, so that a network may be copied and moved.

    Args:
        layers: of the encoder, each with the same sizes of the attention.
        shape: of the attention.
    """

    def __init__(self, layers: Sequence[EncoderStackLayer], shape: EncoderShape) -> None:
        self._packer = Packer()
        self._shape = shape
        self._channels = len(layers[0].after_sampling.weight)
        self._layers = (_Layer * len(layers))(*map(self._layer, layers))

    def take_weights(self) -> Tensor:
        """The packed weights, float32 [N]."""
        return self._packer.take()

    def run(  # noqa: PLR0913 - the parts of the tokens' geometry, by keyword
        self,
        weights: Tensor,
        tokens: Tensor,
        *,
        position: Tensor,
        reference_points: Tensor,
        padding: Tensor | None,
        spatial_shapes: Sequence[tuple[int, int]],
        low_tokens: int,
    ) -> Tensor:
        """Runs the layers on float32 tensors.

        Args:
            weights: of `take_weights`.
            tokens: [B, S, d]; updated in place if contiguous.
            position: [B, S, d].
            reference_points: [B, S, L, 2].
            padding: bool [B, S], True where a token is not sampled; None: all are.
            spatial_shapes: (H, W) of each level.
            low_tokens: number of low-level tokens, which come first.

        Returns:
            The updated tokens [B, S, d].
        """
        tokens, batch = tokens.contiguous(), len(tokens)
        # Of one image they may be expanded.
        position, points = (
            each.expand(batch, *each.shape[1:]).contiguous()
            for each in (position, reference_points)
        )
        padding = None if padding is None else padding.contiguous()
        values = tokens.new_empty(2 * tokens.numel())
        shapes = (ctypes.c_int64 * (2 * len(spatial_shapes)))(*sum(spatial_shapes, ()))
        shape = self._shape
        call = _Encoder(
            *(weights.data_ptr(), ctypes.addressof(self._layers)),
            *(len(self._layers), self._channels, shape.heads),
            *(shape.levels, shape.points, shape.offset_levels, shape.key_aware),
            *(ctypes.addressof(shapes), batch, tokens.shape[1], low_tokens),
            *(tokens.data_ptr(), position.data_ptr(), points.data_ptr()),
            *(None if padding is None else padding.data_ptr(), values.data_ptr(), shape.norm_eps),
            torch.get_num_threads(),
        )
        if tokens.numel() > 0:
            cpu.library().lite_detr_encoder(ctypes.byref(call))
        return tokens

    def _layer(self, layer: EncoderStackLayer) -> _Layer:
        products = (self._packer.product(getattr(layer, n)) for n in _PRODUCTS)
        high = self._feed_forward(layer.high)
        return _Layer(
            *products,
            self._packer.norm(layer.after_sampling),
            high,
            high if layer.low is None else self._feed_forward(layer.low),
            layer.updates_low,
        )

    def _feed_forward(self, network: FeedForward) -> _FeedForward:
        return _FeedForward(
            self._packer.product(network.widen),
            self._packer.product(network.narrow),
            self._packer.norm(network.after),
            len(network.widen.weight),
        )
