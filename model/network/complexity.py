"""Multiply-accumulates and parameters of a detector, counted without computing anything.

The network runs on torch's meta device, which has shapes and no values. Counted are convolutions,
matrix products and bilinear samples (four products each, as in fvcore, whose counter the official
code uses). Not counted are norms, activations, softmax and sums; key-aware attention gathers its
keys with the values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from model.config import ModelConfig
from model.network.detector import LiteDETR, build_detector

# (H, W) that the benchmark of the official code takes for the mean of the first 100 images of COCO
# val2017. The sizes of the 100 images are not part of this repository.
COCO_SIZE: Final = (850, 1040)
_PRODUCTS_OF_A_SAMPLE = 4  # bilinear
_PARTS: Final = {  # module -> part of the total
    "backbone": "backbone",
    "input_proj": "projections",
    "transformer.encoder": "encoder",
    "transformer.decoder": "decoder",
}
_OTHER: Final = "selection"  # query selection and the heads of the last layer


@dataclass(frozen=True)
class Complexity:
    """The cost of one forward pass of one image.

    Attributes:
        parts: billions of multiply-accumulates (GFLOPs in DETR's papers) of backbone,
            projections, encoder, decoder, and query selection with the last heads.
        parameters: of the network, in millions; frozen normalisations are none.
    """

    parts: dict[str, float]
    parameters: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())

    @property
    def head(self) -> float:
        """The detection head: all but the backbone."""
        return self.total - self.parts["backbone"]


def count(config: ModelConfig, sizes: Sequence[tuple[int, int]]) -> Complexity:
    """The mean complexity of images of these sizes.

    Args:
        config: the architecture.
        sizes: (H, W) of the network's input, in pixels; without padding.

    Raises:
        ValueError: without sizes, or for one below 1.
    """
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ValueError("sizes of images are at least 1 x 1 pixels, and there is at least one")
    with torch.device("meta"):
        detector = build_detector(config).eval()
    totals: Counter[str] = Counter()
    for size, times in Counter(sizes).items():
        for part, number in _count_image(detector, size).items():
            totals[part] += number * times
    parts = {part: totals[part] / len(sizes) / 1e9 for part in (*_PARTS.values(), _OTHER)}
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return Complexity(parts, parameters / 1e6)


def _count_image(detector: LiteDETR, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-accumulates of each part for one image."""
    images = torch.empty(1, 3, *size, device="meta")
    mask = torch.empty(1, *size, dtype=torch.bool, device="meta")
    counter = _Counter()
    with _attributed(detector, counter), torch.no_grad(), counter:
        detector(images, mask)
    return counter.found


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-accumulates of operators for the current part."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = _OTHER
        self.found: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the operator and adds its count."""
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in flop_registry:  # counts a product and a sum as two
            number = flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2
        elif packet is torch.ops.aten.grid_sampler_2d:
            assert isinstance(result, Tensor)
            number = _PRODUCTS_OF_A_SAMPLE * math.prod(result.shape)
        else:
            return result
        self.found[self.part] = self.found.get(self.part, 0) + int(number)
        return result


@contextmanager
def _attributed(detector: nn.Module, counter: _Counter) -> Iterator[None]:
    """Sets the counter's part while a module of `_PARTS` runs."""
    handles = []
    for name, part in _PARTS.items():
        for module in _runnable(detector.get_submodule(name)):

            def enter(*_arguments: object, part: str = part) -> None:
                counter.part = part

            def leave(*_arguments: object) -> None:
                counter.part = _OTHER

            handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _runnable(module: nn.Module) -> list[nn.Module]:
    """The module, or what a list of modules holds, which is not called itself."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]
