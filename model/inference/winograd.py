"""3x3 convolutions in a quarter of the multiplications; see `model.ops.winograd`.

For float32 on a CPU alone: narrower numbers would lose too much in the sums of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.inference.layers import Convolution, Product, as_linear, onednn_takes
from model.ops import winograd

# More would need their weights, four times as large, read and kept for too little.
_MOST_CHANNELS = 256
# Tiles x inputs x outputs of a convolution; with fewer, the many small products gain nothing.
_LEAST_WORK = 1 << 21


def winograd_takes(layer: nn.Conv2d, dtype: torch.dtype) -> bool:
    """Whether `WinogradConvolution` can and may stand for the layer."""
    channels = (layer.in_channels, layer.out_channels)
    kind = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return (
        kind == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        and dtype == torch.float32
        and all(c <= _MOST_CHANNELS and c % winograd.CHANNELS == 0 for c in channels)
        and onednn_takes(layer.weight.device, dtype)
        and winograd.available()
    )


class WinogradConvolution(nn.Module):
    """A convolution that `winograd_takes`; small maps go through the plain one.

    Args:
        plain: without a residual; its activation is "none" or "relu".
    """

    def __init__(self, plain: Convolution) -> None:
        super().__init__()
        assert plain.activation in ("none", "relu"), plain.activation
        self.plain = plain
        weight = plain.get_buffer("weight")
        self.work_per_tile = weight.shape[0] * weight.shape[1]
        none = torch.zeros(weight.shape[0])
        self.products = nn.ModuleList(
            Product(as_linear(matrix.float(), none), torch.float32)
            for matrix in winograd.kernels_at_points(weight)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W], both channels last."""
        batch, _, height, width = x.shape
        if winograd.count_tiles(height, width) * self.work_per_tile < _LEAST_WORK:
            return self.plain(x)  # type: ignore[no-any-return]
        planes = winograd.spread(x.permute(0, 2, 3, 1))
        multiplied = [product(plane) for product, plane in zip(self.products, planes, strict=True)]
        bias, relu = self.plain.get_buffer("bias"), self.plain.activation == "relu"
        result = winograd.gather(multiplied, bias, (batch, height, width), relu=relu)
        return result.permute(0, 3, 1, 2)
