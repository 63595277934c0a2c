"""The baseline: the network in plain PyTorch, with attention by the published formula.

Frozen normalisation is a separate operation, feature maps are channels first, and key-aware
attention samples keys and values separately with `grid_sample` and stores both completely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.convolution import FrozenBatchNorm
from model.network.linear import add_and_activate
from model.network.onednn import Activation


def separate_norm(
    x: Tensor,
    conv: nn.Conv2d,
    norm: FrozenBatchNorm,
    activation: Activation = "none",
    add: Tensor | None = None,
) -> Tensor:
    """activation(norm(conv(x)) + add), with the norm as an operation of its own."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    normed = conv(x) * scale[None, :, None, None] + shift[None, :, None, None]
    return add_and_activate(normed, add, activation)


def key_aware_formula(  # noqa: PLR0913, PLR0917 - the operation's own arguments
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    valid_ratios: Tensor | None = None,
) -> Tensor:
    """Key-aware attention by its formula; arguments as `model.ops.key_aware_deform_attn`."""
    assert valid_ratios is None, "on a CPU, padding is zeroed before"
    batch, queries, heads, channels = query.shape
    locations = _locations(spatial_shapes, reference_points, sampling_offsets)
    keys = _sampled(value if key is None else key, spatial_shapes, locations)
    values = _sampled(value, spatial_shapes, locations)  # [B*M, D, Q, L*P]
    per_head = query.transpose(1, 2).reshape(batch * heads, queries, channels)
    scores = torch.einsum("bqd,bdqp->bqp", per_head, keys) / channels**0.5
    weights = scores.softmax(-1)[:, None]
    attended: Tensor = (values * weights).sum(-1).view(batch, heads * channels, queries)
    return attended.transpose(1, 2).contiguous()


def _locations(shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor) -> Tensor:
    centres = references[:, :, None, :, None, :2]
    if references.shape[-1] == 4:  # noqa: PLR2004 - cxcywh
        sizes = references[:, :, None, :, None, 2:]
        return centres + offsets / offsets.shape[4] * sizes * 0.5
    widths = torch.tensor([(width, height) for height, width in shapes], dtype=offsets.dtype)
    return centres + offsets / widths[None, None, None, :, None]


def _sampled(tokens: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor) -> Tensor:
    grids = 2 * locations - 1
    parts = tokens.split([height * width for height, width in shapes], dim=1)  # type: ignore[no-untyped-call]
    sampled = []
    for level, (part, (height, width)) in enumerate(zip(parts, shapes, strict=True)):
        plane = part.flatten(2).transpose(1, 2).reshape(-1, tokens.shape[3], height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(plane, grid, "bilinear", "zeros", align_corners=False))
    return torch.stack(sampled, dim=-2).flatten(-2)


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Inside this context, detectors compute as the baseline does."""
    with (
        mock.patch("model.network.backbone.resnet.conv_bn", separate_norm),
        mock.patch("model.network.backbone.efficientnet.conv_bn", separate_norm),
        mock.patch("model.network.deformable_attention.key_aware_deform_attn", key_aware_formula),
    ):
        yield
