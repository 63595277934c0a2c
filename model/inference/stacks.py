"""Encoder and decoder for inference: `model.network`'s stacks with weights prepared.

Both compute in the network's type. Boxes, what refines them and the class scores stay float32:
boxes of half precision would be off by pixels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.inference.attention import QuerySide, Sampled, SampledSide, SelfAttention
from model.inference.geometry import Geometry
from model.inference.layers import Norm, Product
from model.network.decoder import MLP, Decoder, DecoderLayer
from model.network.encoder import EncoderLayer, InterleavedEncoder
from model.network.position_encoding import encode_boxes
from model.network.query_selection import inverse_sigmoid


class FeedForward(nn.Module):
    """norm(x + linear2(relu(linear1(x))))."""

    def __init__(
        self, linear1: nn.Module, linear2: nn.Module, norm: nn.Module, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.widen = Product(cast(nn.Linear, linear1), dtype, "relu")
        self.narrow = Product(cast(nn.Linear, linear2), dtype)
        self.norm = Norm(cast(nn.LayerNorm, norm), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        return self.norm(self.narrow(self.widen(x), x))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    """An encoder layer."""

    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.sampled = SampledSide([layer.self_attn], dtype)
        self.attention = QuerySide(layer.self_attn, dtype)
        self.norm = Norm(layer.norm1, dtype)
        self.feedforward = FeedForward(layer.linear1, layer.linear2, layer.norm2, dtype)
        self.small: FeedForward | None = None
        if layer.small_expand:
            self.small = FeedForward(layer.linear12, layer.linear22, layer.norm22, dtype)

    def forward(self, tokens: Tensor, geometry: Geometry, start: int, num_low: int) -> None:
        """Updates the tokens [B, S, d] from `start` on, in place."""
        (sampled,) = self.sampled(tokens, geometry.padding)
        queries = tokens[:, start:]
        x = self.norm(
            self.attention(
                queries + geometry.position[:, start:],
                sampled,
                geometry.spatial_shapes,
                geometry.reference_points[:, start:],
                queries,
            )
        )
        if self.small is not None and num_low > start:
            tokens[:, start:num_low] = self.small(x[:, : num_low - start])
            tokens[:, num_low:] = self.feedforward(x[:, num_low - start :])
        else:
            tokens[:, start:] = self.feedforward(x)


class FastEncoder(nn.Module):
    """The interleaved encoder."""

    def __init__(self, encoder: InterleavedEncoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_low_levels = encoder.num_low_levels
        self.updates_all = [encoder.updates_all(index) for index in range(len(encoder.layers))]
        self.layers = nn.ModuleList(_Layer(cast(EncoderLayer, e), dtype) for e in encoder.layers)

    def forward(self, tokens: Tensor, geometry: Geometry) -> Tensor:
        """Encodes the tokens [B, S, d] in place and returns them."""
        num_low = sum(h * w for h, w in geometry.spatial_shapes[: self.num_low_levels])
        for layer, whole in zip(self.layers, self.updates_all, strict=True):
            layer(tokens, geometry, 0 if whole else num_low, num_low)
        return tokens


class FastMLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, mlp: MLP, dtype: torch.dtype) -> None:
        super().__init__()
        layers = [cast(nn.Linear, layer) for layer in mlp.layers]
        products = [Product(layer, dtype, "relu") for layer in layers[:-1]]
        self.products = nn.Sequential(*products, Product(layers[-1], dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.products(x)  # type: ignore[no-any-return]


class _DecoderLayer(nn.Module):
    """A decoder layer."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attention = SelfAttention(layer.self_attn, dtype)
        self.norm2 = Norm(layer.norm2, dtype)
        self.attention = QuerySide(layer.cross_attn, dtype)
        self.norm1 = Norm(layer.norm1, dtype)
        self.feedforward = FeedForward(layer.linear1, layer.linear2, layer.norm3, dtype)

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, sampled: Sampled, geometry: Geometry
    ) -> Tensor:
        """[B, Q, d] queries -> [B, Q, d]; `boxes` [B, Q, L, 4] as the levels see them."""
        x = self.norm2(self.self_attention(x, position))
        shapes = geometry.spatial_shapes
        x = self.norm1(self.attention(x + position, sampled, shapes, boxes, x))
        return self.feedforward(x)  # type: ignore[no-any-return]


class FastDecoder(nn.Module):
    """The decoder and its heads, the last layer's answer alone.

    Args:
        decoder: whose weights are taken.
        dtype: of tokens and queries; boxes and both heads are float32.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        super().__init__()
        layers = [cast(DecoderLayer, layer) for layer in decoder.layers]
        self.dtype, exact = dtype, torch.float32
        self.sampled = SampledSide([layer.cross_attn for layer in layers], dtype)
        self.layers = nn.ModuleList(_DecoderLayer(layer, dtype) for layer in layers)
        self.norm = Norm(decoder.norm, exact)
        self.ref_point_head = FastMLP(decoder.ref_point_head, dtype)
        # Layers share their heads in DINO; what is shared is prepared once.
        made = {id(head): FastMLP(cast(MLP, head), exact) for head in decoder.bbox_embed}
        self.bbox_embed = nn.ModuleList(made[id(head)] for head in decoder.bbox_embed)
        self.class_embed = Product(cast(nn.Linear, decoder.class_embed[-1]), exact)

    def forward(
        self, content: Tensor, reference_logits: Tensor, memory: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Runs the layers.

        Args:
            content: [B, Q, d].
            reference_logits: float32 [B, Q, 4], boxes before the sigmoid.
            memory: [B, S, d], the encoder's tokens.
            geometry: theirs.

        Returns:
            Class logits [B, Q, C] and boxes [B, Q, 4], cxcywh 0..1; float32.
        """
        x, boxes = content, reference_logits.sigmoid()
        all_sampled = self.sampled(memory, geometry.padding)
        for index, (layer, head) in enumerate(zip(self.layers, self.bbox_embed, strict=True)):
            by_level = boxes[:, :, None] * geometry.box_ratios
            encoded = encode_boxes(boxes * geometry.query_ratios, content.shape[-1])
            position = self.ref_point_head(encoded.to(self.dtype))
            x = layer(x, position, by_level, all_sampled[index], geometry)
            hidden = x.to(torch.float32)
            if index == len(self.layers) - 1:
                hidden = self.norm(hidden)
            boxes = (head(hidden) + inverse_sigmoid(boxes)).sigmoid()
        return self.class_embed(hidden), boxes
