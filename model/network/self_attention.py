"""Self-attention among queries: `nn.MultiheadAttention` with its parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.linear import Linear, PackedLinear, project_and_norm
from model.ops.packing import Affine


class SelfAttention(nn.Module):
    """Multi-head attention with q = k = x + position and v = x.

    Args:
        d_model: channels of a query.
        num_heads: a divisor of it.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))  # of q, k and v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = Linear(d_model, d_model)
        # In the inference form these hold the packed input projection.
        self.query_key: PackedLinear | None = None
        self.value: PackedLinear | None = None
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def inference_form(self, dtype: torch.dtype) -> SelfAttention:
        """See `model.network.inference`."""
        query_key, value = self.projections()
        self.query_key = PackedLinear(*query_key, dtype)
        self.value = PackedLinear(*value, dtype)
        del self.in_proj_weight, self.in_proj_bias
        return self

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        attention_mask: Tensor | None = None,
        *,
        norm: nn.Module,
    ) -> Tensor:
        """Attends, adds the residual and normalises the sum.

        Args:
            x: [B, Q, d].
            position: [B, Q, d].
            attention_mask: bool [Q, Q], True where a query may not see another, or None.
            norm: of the sum.

        Returns:
            [B, Q, d].
        """
        query_key, value = self._project(x + position, x)
        query, key = (self._by_head(part) for part in query_key.chunk(2, dim=-1))
        visible = None if attention_mask is None else ~attention_mask
        attended = _attend(query, key, self._by_head(value), visible)
        return project_and_norm(attended.transpose(1, 2).flatten(2), self.out_proj, x, norm)

    def _project(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, Q, 2 * d], and values [B, Q, d]."""
        if self.query_key is not None and self.value is not None:
            return self.query_key(query), self.value(x)
        query_key, value = self.projections()
        return F.linear(query, *query_key), F.linear(x, *value)

    def projections(self) -> tuple[Affine, Affine]:
        """The input projection of queries and keys, and that of values; in training form only."""
        d_model = self.in_proj_weight.shape[1]
        query_key, value = self.in_proj_weight.split((2 * d_model, d_model))  # type: ignore[no-untyped-call]
        query_key_bias, value_bias = self.in_proj_bias.split((2 * d_model, d_model))  # type: ignore[no-untyped-call]
        return Affine(query_key, query_key_bias), Affine(value, value_bias)

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, Q, d] -> [B, M, Q, D]."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """[B, M, Q, D] each -> [B, M, Q, D]; `visible` bool [Q, Q], or None."""
    if query.requires_grad and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # Its gradients in bfloat16 were measured to take more than twice the time.
        with torch.autocast("cpu", enabled=False):
            floats = query.float(), key.float(), value.float()
            return F.scaled_dot_product_attention(*floats, visible)
    return F.scaled_dot_product_attention(query, key, value, visible)
