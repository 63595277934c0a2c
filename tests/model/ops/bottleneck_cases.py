"""Random networks of inverted bottlenecks, and their results by plain convolutions in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.ops.bottlenecks import STEM_CHANNELS, Bottleneck, Bottlenecks, Folded

# Rows: output channels, expansion, kernel, stride.
USUAL = ((16, 1, 3, 1), (24, 6, 3, 2), (24, 6, 5, 1), (40, 6, 5, 2), (40, 2, 3, 1), (112, 2, 3, 2))


@dataclass(frozen=True)
class Case:
    stem: Folded
    blocks: list[Bottleneck]
    taps: tuple[int, ...]

    @classmethod
    def random(
        cls, rows: tuple[tuple[int, int, int, int], ...] = USUAL, taps: tuple[int, ...] = (2, 3, 5)
    ) -> Case:
        generator = torch.Generator().manual_seed(0)

        def folded(*shape: int) -> Folded:
            scale = (shape[1] * shape[2] * shape[3]) ** -0.5
            weight = torch.randn(shape, generator=generator) * scale
            return Folded(weight, torch.randn(shape[0], generator=generator))

        stem = folded(STEM_CHANNELS, 3, 3, 3)
        blocks, inputs = [], STEM_CHANNELS
        for outputs, expansion, kernel, stride in rows:
            width = inputs * expansion
            blocks.append(
                Bottleneck(
                    folded(width, inputs, 1, 1) if expansion > 1 else None,
                    folded(width, 1, kernel, kernel),
                    folded(outputs, width, 1, 1),
                    stride,
                    residual=stride == 1 and inputs == outputs,
                )
            )
            inputs = outputs
        return cls(stem, blocks, taps)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        network = Bottlenecks(self.stem, self.blocks, self.taps)
        return network.run(images, network.take_weights())

    def expected(self, images: Tensor) -> list[Tensor]:
        x = _convolved(images.double(), self.stem, stride=2).clamp(0, 6)
        maps = []
        for index, block in enumerate(self.blocks):
            shortcut = x
            if block.expand is not None:
                x = _convolved(x, block.expand).clamp(0, 6)
            x = _convolved(x, block.depthwise, block.stride, groups=x.shape[1]).clamp(0, 6)
            x = _convolved(x, block.project)
            if block.residual:
                x = x + shortcut
            if index in self.taps:
                maps.append(x)
        return maps


def _convolved(x: Tensor, folded: Folded, stride: int = 1, groups: int = 1) -> Tensor:
    weight, bias = folded.weight.double(), folded.bias.double()
    return F.conv2d(x, weight, bias, stride, weight.shape[2] // 2, groups=groups)


def images_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_right(case: Case, images: Tensor) -> None:
    maps, exact = case.run(images), case.expected(images)
    assert len(maps) == len(exact)
    for found, wanted in zip(maps, exact, strict=True):
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
