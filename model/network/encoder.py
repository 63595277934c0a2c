"""The interleaved multi-scale encoder (Lite DETR, arXiv 2303.07335, sections 3.2 and 3.3).

High-level tokens (the few of the coarse levels) are updated in every layer; the many low-level
tokens only in the last layer of each block, by their own narrow FFN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.deformable_attention import DeformableAttention
from model.network.geometry import Geometry
from model.network.linear import Linear, affine_of, feed_forward
from model.network.one_call import OneCall
from model.ops.encoder_stack import EncoderShape, EncoderStack, EncoderStackLayer, FeedForward


class EncoderLayer(nn.Module):
    """Deformable self-attention and FFN.

    Args:
        config: the architecture.
        small_expand: low-level tokens have a narrow FFN (`linear12`, `linear22`, `norm22`).
    """

    def __init__(self, config: ModelConfig, *, small_expand: bool) -> None:
        super().__init__()
        d_model, width = config.d_model, config.encoder_feedforward
        self.self_attn = DeformableAttention(
            config,
            config.encoder_points,
            key_aware=config.key_aware,
            separate_keys=config.separate_keys,
            same_loc=config.same_loc,
        )
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, width)
        self.linear2 = Linear(width, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.small_expand = small_expand
        if small_expand:
            self.linear12 = Linear(d_model, d_model)
            self.linear22 = Linear(d_model, d_model)
            self.norm22 = nn.LayerNorm(d_model)

    def forward(
        self, tokens: Tensor, geometry: Geometry, start: int, num_low: int
    ) -> tuple[Tensor, ...]:
        """Updates the tokens from `start` on.

        Args:
            tokens: [B, S, d], all of which serve as keys and values.
            geometry: theirs.
            start: the first token to update.
            num_low: how many leading tokens of all are low-level.

        Returns:
            The updated tokens in order, in one part or two: [B, N, d] each.
        """
        queries = tokens[:, start:]
        x = self.self_attn(
            queries + geometry.position[:, start:],
            geometry.reference_points[:, start:],
            self.self_attn.project(tokens, geometry),
            queries,
            norm=self.norm1,
        )
        if not self.small_expand or num_low <= start:
            return (feed_forward(x, self.linear1, self.linear2, self.norm2),)
        low, high = x[:, : num_low - start], x[:, num_low - start :]
        return (
            feed_forward(low, self.linear12, self.linear22, self.norm22),
            feed_forward(high, self.linear1, self.linear2, self.norm2),
        )

    def stacked(self, *, updates_low: bool) -> EncoderStackLayer:
        """The parameters; `updates_low`: whether low-level tokens are updated."""
        attention = self.self_attn
        low = None
        if self.small_expand:
            low = FeedForward(*map(affine_of, (self.linear12, self.linear22, self.norm22)))
        return EncoderStackLayer(
            value=affine_of(attention.value_proj),
            offsets=affine_of(attention.sampling_offsets),
            scores=affine_of(attention.query_layer()),
            sampled=affine_of(attention.output_proj),
            after_sampling=affine_of(self.norm1),
            high=FeedForward(*map(affine_of, (self.linear1, self.linear2, self.norm2))),
            low=low,
            updates_low=updates_low,
        )


class InterleavedEncoder(OneCall[EncoderStack]):
    """Layers in blocks; only a block's last layer updates the low-level tokens.

    Without interleaving (`config.interleaved` off) every layer updates every token: plain DINO.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers_per_block = config.encoder_layers // config.encoder_blocks
        self.num_low_levels = config.num_feature_levels - config.high_level_scales
        self.interleaved = config.interleaved
        self.layers = nn.ModuleList(
            EncoderLayer(config, small_expand=config.interleaved and self.updates_all(index))
            for index in range(config.encoder_layers)
        )

    def inference_form(self, dtype: torch.dtype) -> InterleavedEncoder:
        """See `model.network.inference`."""
        layers = [cast(EncoderLayer, layer) for layer in self.layers]
        attention, norm = layers[0].self_attn, layers[0].norm1
        if attention.key_proj is not None or not self.can_stack(norm.weight, dtype):
            return self
        shape = EncoderShape(
            heads=attention.num_heads,
            levels=attention.num_levels,
            points=attention.num_points,
            offset_levels=attention.offset_levels,
            key_aware=attention.key_aware,
            norm_eps=norm.eps,
        )
        stacked = [
            layer.stacked(updates_low=self.updates_all(index)) for index, layer in enumerate(layers)
        ]
        self.use_stack(EncoderStack(stacked, shape))
        return self

    def updates_all(self, index: int) -> bool:
        """Whether that layer updates the low-level tokens too."""
        return not self.interleaved or (index + 1) % self.layers_per_block == 0

    def forward(self, tokens: Tensor, geometry: Geometry) -> Tensor:
        """Encodes all tokens: memory [B, S, d]; without gradients, in place."""
        num_low = sum(h * w for h, w in geometry.spatial_shapes[: self.num_low_levels])
        if self.stack is not None and self.stacked_weights is not None:
            return self.stack.run(
                self.stacked_weights,
                tokens,
                position=geometry.position,
                reference_points=geometry.reference_points,
                padding=geometry.padding,
                spatial_shapes=geometry.spatial_shapes,
                low_tokens=num_low,
            )
        for index, layer in enumerate(self.layers):
            start = 0 if self.updates_all(index) else num_low
            tokens = _replace_from(tokens, start, layer(tokens, geometry, start, num_low))
        return tokens


def _replace_from(tokens: Tensor, start: int, parts: Sequence[Tensor]) -> Tensor:
    """The tokens [B, S, d] with those from `start` on replaced by the parts."""
    if torch.is_grad_enabled():
        return torch.cat((tokens[:, :start], *parts), dim=1)
    for part in parts:
        tokens[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return tokens
