"""Packs the weights of a compiled network into one tensor, in the order of the kernels' reads."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.ops import cpu

_ALIGNMENT = 16  # of every part, in floats: a cache line


class Affine(NamedTuple):
    """A linear layer's [outputs, inputs] weight and [outputs] bias, or those of a norm, [d]."""

    weight: Tensor
    bias: Tensor


class ProductPlace(ctypes.Structure):
    """Mirror of `Product` in csrc/places.h."""

    _fields_ = (("panels", ctypes.c_int64), ("bias", ctypes.c_int64))


class NormPlace(ctypes.Structure):
    """Mirror of `Norm` in csrc/places.h."""

    _fields_ = (("scale", ctypes.c_int64), ("shift", ctypes.c_int64))


class Packer:
    """Collects parts and their places, in floats, in the tensor that `take` returns."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._size = 0
        self._panel = int(cpu.library().lite_detr_panel())
        self._lanes = int(cpu.library().lite_detr_lanes())

    def add(self, part: Tensor) -> int:
        """The place that the part gets."""
        self._parts.append(part.detach().float().flatten())
        place, self._size = self._size, self._size + _aligned(part.numel())
        return place

    def add_product(self, weight: Tensor, bias: Tensor) -> tuple[int, int]:
        """Places of the panels of [outputs, inputs] weights and of the [outputs] bias.

        Both are padded to whole vectors; see `Weights` in csrc/products.h.
        """
        padding = -len(weight) % self._lanes
        columns = F.pad(weight.detach().t(), (0, padding))  # [inputs, columns]
        panels = [panel.flatten() for panel in torch.split(columns, self._panel, dim=1)]
        return self.add(torch.cat(panels)), self.add(F.pad(bias.detach(), (0, padding)))

    def product(self, layer: Affine) -> ProductPlace:
        """The place of a linear layer."""
        return ProductPlace(*self.add_product(*layer))

    def norm(self, norm: Affine) -> NormPlace:
        """The place of a norm."""
        return NormPlace(*map(self.add, norm))

    def take(self) -> Tensor:
        """All parts, float32 [N]; the packer is empty afterwards."""
        weights = torch.zeros(self._size)
        place = 0
        for part in self._parts:
            weights[place : place + part.numel()] = part
            place += _aligned(part.numel())
        self._parts.clear()
        self._size = 0
        return weights


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT
