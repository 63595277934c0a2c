"""The network as it is exported: one size of images, any batch size, public operators only."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from model.network import onednn
from model.network.detector import LiteDETR
from model.network.geometry import Geometry, GeometryCache, Shapes, make_geometry
from model.network.inference import prepare_for_inference
from model.network.position_encoding import CellRule
from model.predictor import padding_of

_EXAMPLE_BATCH = 2  # the exporter treats a batch of 1 as fixed


class ExportedNetwork(nn.Module):
    """Normalised images of one size -> logits and boxes of the queries.

    Normalisation layers are folded into the convolutions. Attention is computed by gathers inside
    `model.ops.computed_by("gathers")`, where this is exported and may be called.

    Args:
        detector: in float32 on the CPU; it is not changed.
        size: (H, W) of the images, in pixels.
        padded: images may be smaller, with padding right and bottom; otherwise the positions of
            the tokens are constants.
    """

    def __init__(self, detector: LiteDETR, size: tuple[int, int], *, padded: bool) -> None:
        super().__init__()
        self.size = size
        self.padded = padded
        with onednn.not_used():
            self.network = prepare_for_inference(detector)
        transformer = self.network.transformer
        transformer.geometry_cache = None if padded else _WholeImages(transformer.cells, size)

    def forward(self, pixels: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Detects in a batch.

        Args:
            pixels: float32 [B, 3, H, W], normalised RGB; padding may have any finite content.
            sizes: int64 [B, 2], (height, width) of each image without padding; only if `padded`.

        Returns:
            logits [B, Q, C], before the sigmoid, and boxes [B, Q, 4], cxcywh in 0..1 of the image
            without padding.
        """
        if self.padded:
            assert sizes is not None, "images of any size need their sizes"
            mask = padding_of(sizes, self.size)
            pixels = pixels.masked_fill(mask[:, None], 0.0)
        else:
            mask = pixels.new_zeros(pixels.shape[0], *self.size, dtype=torch.bool)
        output = self.network(pixels, mask)
        return output.pred_logits, output.pred_boxes

    def example(self) -> tuple[Tensor, ...]:
        """Arguments of `forward`."""
        pixels = torch.zeros(_EXAMPLE_BATCH, 3, *self.size)
        if not self.padded:
            return (pixels,)
        return pixels, torch.tensor([self.size] * _EXAMPLE_BATCH)


class _WholeImages(GeometryCache):
    """The geometry of images of one size without padding: constants of the exported network.

    Args:
        cells: how positions are encoded.
        size: (H, W) of the images.
    """

    def __init__(self, cells: CellRule, size: tuple[int, int]) -> None:
        super().__init__(torch.float32, cells)
        self._cell_rule = cells
        self._size = size
        self._constants: Geometry | None = None

    def get(self, padding_mask: Tensor, shapes: Shapes, level_embed: Tensor) -> Geometry:
        """The geometry of a batch; the first call must not be traced."""
        if self._constants is None:
            nothing = torch.zeros(1, *self._size, dtype=torch.bool)
            whole = make_geometry(nothing, shapes, level_embed, cells=self._cell_rule)
            self._constants = replace(whole, padding=None)
        return _expanded(self._constants, padding_mask.shape[0])


def _expanded(geometry: Geometry, batch: int) -> Geometry:
    """The geometry of one image as that of a batch of equal ones."""
    tensors: dict[str, Any] = {
        field.name: tensor.expand(batch, *tensor.shape[1:])
        for field in fields(geometry)
        if isinstance(tensor := getattr(geometry, field.name), Tensor)
    }
    return replace(geometry, **tensors)
