"""Deformable attention for inference: attention modules with their weights prepared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.inference.geometry import Shapes
from model.inference.layers import Product, Products, as_linear
from model.network.deformable_attention import DeformableAttention
from model.ops import key_aware_deform_attn, ms_deform_attn


@dataclass(frozen=True)
class Sampled:
    """What queries look at: projected tokens by head, zero on padding."""

    value: Tensor  # [B, S, M, D]
    key: Tensor | None  # None: the keys are the values


class QuerySide(nn.Module):
    """What one attention does with its queries: where they look, what they ask, what comes out.

    Args:
        attention: whose weights are taken.
        dtype: of the queries and of the result.
    """

    def __init__(self, attention: DeformableAttention, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads, self.num_levels = attention.num_heads, attention.num_levels
        self.num_points, self.offset_levels = attention.num_points, attention.offset_levels
        self.key_aware = attention.key_aware
        asks = attention.query_proj if self.key_aware else attention.attention_weights
        assert asks is not None
        self.asking = Products((attention.sampling_offsets, asks), dtype)
        self.output = Product(attention.output_proj, dtype)

    def forward(
        self,
        query: Tensor,
        sampled: Sampled,
        shapes: Shapes,
        reference_points: Tensor,
        residual: Tensor,
    ) -> Tensor:
        """Attends, projects and adds the residual.

        Args:
            query: [B, Q, d], position already added.
            sampled: what is looked at.
            shapes: (H, W) of each level.
            reference_points: float32 [B, Q, L, 2 or 4].
            residual: [B, Q, d].

        Returns:
            [B, Q, d].
        """
        batch, count, _ = query.shape
        offsets, asked = self.asking(query)
        offsets = offsets.view(batch, count, self.num_heads, self.offset_levels, self.num_points, 2)
        asked = asked.view(batch, count, self.num_heads, -1)
        value, key = sampled.value, sampled.key
        if self.key_aware:
            attended = key_aware_deform_attn(asked, key, value, shapes, reference_points, offsets)
        else:
            attended = ms_deform_attn(value, shapes, reference_points, offsets, asked)
        return self.output(attended.to(query.dtype), residual)  # type: ignore[no-any-return]


class SampledSide(nn.Module):
    """The values (and keys) of one or several attentions over the same tokens.

    Args:
        attentions: whose weights are taken; all or none with keys of their own.
        dtype: of the tokens and of the result.
    """

    def __init__(self, attentions: list[DeformableAttention], dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads = attentions[0].num_heads
        self.values = Products([attention.value_proj for attention in attentions], dtype)
        keys = [attention.key_proj for attention in attentions]
        self.keys: Products | None = None
        if keys[0] is not None:
            self.keys = Products([key for key in keys if key is not None], dtype)

    def forward(self, tokens: Tensor, padding: Tensor | None) -> list[Sampled]:
        """[B, S, d] tokens and their bool [B, S] padding, if any: what each attention samples."""
        values = [self._by_head(value, padding) for value in self.values(tokens)]
        keys: list[Tensor | None] = [None] * len(values)
        if self.keys is not None:
            keys = [self._by_head(key, padding) for key in self.keys(tokens)]
        return [Sampled(value, key) for value, key in zip(values, keys, strict=True)]

    def _by_head(self, projected: Tensor, padding: Tensor | None) -> Tensor:
        """[B, S, d] -> [B, S, M, D], zero on padding."""
        cleared = projected if padding is None else clear_rows(projected, padding)
        return cleared.view(*cleared.shape[:2], self.num_heads, -1)


def clear_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Zeroes rows of [B, S, d] in place where bool [B, S] says so."""
    if x.device.type == "cpu":  # only the rows are touched; on a GPU finding them would wait
        x.view(-1, x.shape[-1]).index_fill_(0, rows.flatten().nonzero()[:, 0], 0.0)
        return x
    return x.masked_fill_(rows[..., None], 0.0)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` among queries, with q = k = x + position and v = x."""

    def __init__(self, attention: nn.MultiheadAttention, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
        split = 2 * attention.embed_dim
        self.query_key = Product(as_linear(weight[:split], bias[:split]), dtype)
        self.value = Product(as_linear(weight[split:], bias[split:]), dtype)
        self.output = Product(attention.out_proj, dtype)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """[B, Q, d] -> x + attended, [B, Q, d]."""
        query, key = self.query_key(x + position).chunk(2, dim=-1)
        query, key, value = (self._by_head(part) for part in (query, key, self.value(x)))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.output(attended, x)  # type: ignore[no-any-return]

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, Q, d] -> [B, M, Q, D]."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
