"""How numbers of maps are held in uint8, with a scale for each channel.

The scales follow from ranges that `model.network.calibration` finds ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

LEVELS = 255  # of uint8, less one

_MIDDLE = 128
_LEAST_SHARE = 1e-6  # of a channel's scale in the largest; others would overflow in the weights


class Quantization:
    """How uint8 holds the numbers of a map: x = (q - zero_point) * scale[c] + offset[c].

    Maps without negative numbers have the zero point 0 and no offset. For the others the zero point
    is the middle; the offset centres the range of each channel, unless the map is padded: padding
    is the zero point and stands for 0.

    Args:
        ranges: float32 [3, C]: the least, the largest and the mean number of each channel.
        padded: whether a convolution reads the map with padding.
    """

    def __init__(self, ranges: Tensor, *, padded: bool = True) -> None:
        self._low, self._high, self.mean = ranges[0], ranges[1], ranges[2]
        signed = bool((self._low < 0).any())
        self.zero_point = _MIDDLE if signed else 0
        self._centred = signed and not padded
        if self._centred:
            scale = (self._high - self._low) / LEVELS
        else:
            scale = self._high / (LEVELS - self.zero_point)
            if signed:
                scale = scale.maximum(-self._low / _MIDDLE)
        least = float(scale.max()) * _LEAST_SHARE or 1.0
        self.scale = scale.clamp_min(least)  # [C]

    @property
    def offset(self) -> Tensor:
        """[C]."""
        if not self._centred:
            return torch.zeros_like(self.scale)
        middle = (self._low + self._high) / 2
        return middle + self.scale * (self.zero_point - LEVELS / 2)

    def dequantize(self, q: Tensor) -> Tensor:
        """Uint8 [B, C, H, W] -> float32."""
        x = q.to(torch.float32).sub_(self.zero_point)
        x.mul_(self.scale[:, None, None]).add_(self.offset[:, None, None])
        return x


def share_scales(maps: Mapping[str, Quantization], added: Iterable[tuple[str, str]]) -> None:
    """Gives maps that are added to each other the same scales: the largest.

    Args:
        maps: by name.
        added: the names of two maps each; a map can be added to several.
    """
    leaders = {name: name for name in maps}

    def leader(name: str) -> str:
        while leaders[name] != name:
            name = leaders[name]
        return name

    for result, add in added:
        one, other = leader(result), leader(add)
        maps[one].scale = maps[one].scale.maximum(maps[other].scale)
        leaders[other] = one
    for name, each in maps.items():
        each.scale = maps[leader(name)].scale
