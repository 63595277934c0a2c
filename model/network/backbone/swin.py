"""Swin-T (Swin Transformer, arXiv 2103.14030) with the parameter names of its official code.

Attention is within windows of 7 x 7 cells; every second block shifts the windows by 3 cells. Maps
are padded with zeros to whole windows, and cells of that padding are attended to, as in the
official code for detection. Cells are [B, H, W, C] throughout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbone.base import Backbone, Maps, read_state_dict
from model.network.convolution import FoldedConvolution
from model.network.linear import Linear, PackedLinear

_PATCH = 4  # pixels
_WINDOW = 7  # cells
_SHIFT = _WINDOW // 2
_MLP_RATIO = 4
_MASKED = -100.0  # added to the score of cells that the shift made neighbours


class WindowAttention(nn.Module):
    """Self-attention within a window, with a learned bias for each relative position.

    The output projection `proj` is applied by the block, without the padding.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        table = torch.empty((2 * _WINDOW - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", _relative_position_index())
        self.register_load_state_dict_pre_hook(_check_index)  # type: ignore[no-untyped-call]
        self.qkv: nn.Module = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.query_scale = (channels // num_heads) ** -0.5
        self.bias: Tensor | None = None  # in the inference form

    def inference_form(self, dtype: torch.dtype) -> WindowAttention:
        """See `model.network.inference`: queries are scaled by their projection."""
        assert isinstance(self.qkv, Linear)
        scale = torch.ones_like(self.qkv.bias)
        scale[: len(scale) // 3] = self.query_scale
        self.bias = self._position_bias().to(dtype)
        self.qkv = PackedLinear(self.qkv.weight * scale[:, None], self.qkv.bias * scale, dtype)
        self.query_scale = 1.0
        del self.relative_position_bias_table, self.relative_position_index
        return self

    def forward(self, windows: Tensor, mask: tuple[Tensor, Tensor] | None) -> Tensor:
        """Attends within each window.

        Args:
            windows: [B, rows, columns, 49, C] of the windows.
            mask: added to the scores in the last row and in the last column of windows, [49, 49]
                each; None: the windows are not shifted.

        Returns:
            [B, rows, columns, 49, C].
        """
        by_head = self.qkv(windows).view(*windows.shape[:4], 3, self.num_heads, -1)
        query, key, value = by_head.permute(4, 0, 1, 2, 5, 3, 6)  # [B, rows, columns, M, 49, D]
        if self.query_scale != 1:
            query = query * self.query_scale
        scores = query @ key.transpose(-2, -1)
        scores += self._position_bias() if self.bias is None else self.bias
        if mask is not None:
            scores[:, -1] += mask[0]
            scores[:, :, -1] += mask[1]
        attended: Tensor = scores.softmax(-1).to(value.dtype) @ value
        return attended.transpose(3, 4).flatten(4)

    def _position_bias(self) -> Tensor:
        """[M, 49, 49]."""
        cells = _WINDOW * _WINDOW
        bias: Tensor = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.view(cells, cells, self.num_heads).permute(2, 0, 1).contiguous()


def _relative_position_index() -> Tensor:
    """The row of the bias table for each pair of cells of a window, int64 [49, 49]."""
    steps = torch.arange(_WINDOW)
    cells = torch.stack(torch.meshgrid(steps, steps, indexing="ij")).flatten(1)  # [2, 49]
    y, x = cells[:, :, None] - cells[:, None, :] + (_WINDOW - 1)
    index: Tensor = y * (2 * _WINDOW - 1) + x
    return index


def _check_index(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    _metadata: object,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """The index is a constant: it may be absent from a state dict, but not differ."""
    name = f"{prefix}relative_position_index"
    own = module.get_buffer("relative_position_index")
    given = state_dict.setdefault(name, own)
    if given.shape == own.shape and not bool((given.to(own.device) == own).all()):
        errors.append(f"{name} is not that of windows of {_WINDOW} x {_WINDOW} cells")


class _Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, _MLP_RATIO * channels)
        self.fc2 = Linear(_MLP_RATIO * channels, channels)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """[..., C] -> [..., C], the residual added if there is one."""
        return self.fc2(self.fc1(x, activation="gelu"), residual)  # type: ignore[no-any-return]


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with a norm before it and a residual.

    Attributes:
        drop_rate: in training, the share of images whose attention, or MLP, is left out
            (stochastic depth, arXiv 1603.09382).
    """

    def __init__(self, channels: int, num_heads: int, *, shifted: bool) -> None:
        super().__init__()
        self.drop_rate = 0.0
        self.shift = _SHIFT if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        height, width = x.shape[1:3]
        windows = self._windows(self.norm1(x))
        mask = _shift_masks(windows) if self.shift else None
        attended = self._cells(self.attn(windows, mask), height, width)
        if self.training and self.drop_rate > 0:
            x = x + self._drop(self.attn.proj(attended))
            return x + self._drop(self.mlp(self.norm2(x), None))
        x = self.attn.proj(attended, x)
        return self.mlp(self.norm2(x), x)  # type: ignore[no-any-return]

    def _drop(self, branch: Tensor) -> Tensor:
        """Zeroes the branch of some images, and scales it up for the others: the mean stays."""
        kept = branch.new_empty((len(branch), 1, 1, 1)).bernoulli_(1 - self.drop_rate)
        return branch * kept.div_(1 - self.drop_rate)

    def _windows(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, rows, columns, 49, C], padded with zeros, then shifted."""
        x = F.pad(x, (0, 0, 0, -x.shape[2] % _WINDOW, 0, -x.shape[1] % _WINDOW))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        rows, columns = x.shape[1] // _WINDOW, x.shape[2] // _WINDOW
        x = x.view(x.shape[0], rows, _WINDOW, columns, _WINDOW, -1)
        return x.transpose(2, 3).flatten(3, 4)

    def _cells(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `_windows`: [B, H, W, C]."""
        x = windows.view(*windows.shape[:3], _WINDOW, _WINDOW, -1).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


def _shift_masks(like: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to scores in the last row and the last column of shifted windows.

    The last cells of these windows come from the opposite side of the map.

    Returns:
        [49, 49] each, of the type and on the device of `like`.
    """
    wrapped = torch.arange(_WINDOW, device=like.device) >= _WINDOW - _SHIFT
    below = wrapped[:, None].expand(_WINDOW, _WINDOW).flatten()
    right = wrapped.repeat(_WINDOW)
    row, column = ((part[:, None] != part) * _MASKED for part in (below, right))
    return row.to(like.dtype), column.to(like.dtype)


class PatchMerging(nn.Module):
    """Joins 2 x 2 cells into one of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction: nn.Module = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def inference_form(self, dtype: torch.dtype) -> PatchMerging:
        """See `model.network.inference`: the norm's weight and bias go into the reduction."""
        assert isinstance(self.reduction, nn.Linear)
        weight = self.reduction.weight
        self.reduction = PackedLinear(weight * self.norm.weight, weight @ self.norm.bias, dtype)
        self.norm = nn.LayerNorm(weight.shape[1], elementwise_affine=False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H / 2, W / 2, 2 * C], sides rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))  # type: ignore[no-any-return]


class _PatchEmbedding(nn.Module):
    """Patches of 4 x 4 pixels -> cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj: nn.Module = nn.Conv2d(3, channels, _PATCH, _PATCH)
        self.norm = nn.LayerNorm(channels)

    def inference_form(self, dtype: torch.dtype) -> _PatchEmbedding:
        """See `model.network.inference`."""
        assert isinstance(self.proj, nn.Conv2d) and self.proj.bias is not None
        weight, bias = self.proj.weight, self.proj.bias
        self.proj = FoldedConvolution(self.proj, weight, bias, dtype, adds=False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H / 4, W / 4, C], sides rounded up."""
        images = F.pad(images, (0, -images.shape[3] % _PATCH, 0, -images.shape[2] % _PATCH))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class _Stage(nn.Module):
    """Blocks of one resolution, and the merging before the next (absent in the last stage)."""

    def __init__(self, channels: int, depth: int, num_heads: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, num_heads, shifted=number % 2 == 1) for number in range(depth)
        )
        self.downsample = None if last else PatchMerging(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        for block in self.blocks:
            x = block(x)
        return x

    def merge(self, x: Tensor) -> Tensor:
        """The input of the next stage."""
        return x if self.downsample is None else self.downsample(x)


class Swin(Backbone):
    """Four stages; the maps of the last three are normed and returned."""

    embed: ClassVar[int]  # channels of the first stage; doubles with each stage
    depths: ClassVar[tuple[int, int, int, int]]  # blocks of each stage
    heads: ClassVar[tuple[int, int, int, int]]  # of attention in each stage

    def __init__(self) -> None:
        super().__init__()
        self.dtype: torch.dtype | None = None  # of the inference form
        self.channels = (2 * self.embed, 4 * self.embed, 8 * self.embed)
        self.patch_embed = _PatchEmbedding(self.embed)
        self.layers = nn.ModuleList(
            _Stage(self.embed * 2**index, depth, heads, last=index == len(self.depths) - 1)
            for index, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True))
        )
        for index, width in enumerate(self.channels, start=1):
            self.add_module(f"norm{index}", nn.LayerNorm(width))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def stages(self) -> list[nn.Module]:
        """The patch embedding, then the stages, finest first."""
        return [self.patch_embed, *self.layers]

    def set_drop_path(self, rate: float) -> None:
        """See `Backbone.set_drop_path`: from 0 in the first block to `rate` in the last."""
        blocks = self._blocks(self.layers)
        for block, block_rate in zip(blocks, torch.linspace(0, rate, len(blocks)), strict=True):
            block.drop_rate = float(block_rate)

    def freeze_stages(self, count: int) -> None:
        """See `Backbone.freeze_stages`; frozen stages drop nothing."""
        super().freeze_stages(count)
        for block in self._blocks(self.stages()[:count]):
            block.drop_rate = 0.0

    @staticmethod
    def _blocks(stages: Iterable[nn.Module]) -> list[SwinBlock]:
        parts = (part for stage in stages for part in stage.modules())
        return [part for part in parts if isinstance(part, SwinBlock)]

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        if self.dtype is not None:
            images = images.to(self.dtype, memory_format=torch.channels_last)
        x, maps = self.patch_embed(images), []
        for index, stage in enumerate(self.layers):
            x = stage(x)
            if index > 0:
                maps.append(self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2))
            x = cast(_Stage, stage).merge(x)
        stride_8, stride_16, stride_32 = maps
        return stride_8, stride_16, stride_32

    def inference_form(self, dtype: torch.dtype) -> Swin:
        """See `model.network.inference`."""
        self.dtype = dtype
        return self

    def load_pretrained(self, source: str) -> None:
        """See `Backbone.load_pretrained`; the norms of the maps, which a classifier lacks, stay.

        Args:
            source: the path of a state dict, or of a checkpoint of the official classifier, which
                has it under `model`.

        Raises:
            ValueError: where there is no such file, or it lacks a tensor; names the first.
        """
        tensors = read_state_dict(source)
        own = self.state_dict()
        kept = ("norm1.", "norm2.", "norm3.")
        absent = {n: t for n, t in own.items() if n.startswith(kept) or n.endswith("_index")}
        self.load_fitting({**absent, **tensors}, source)


class SwinTiny(Swin):
    """Swin-T."""

    embed, depths, heads = 96, (2, 2, 6, 2), (3, 6, 12, 24)
