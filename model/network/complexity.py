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
from model.network.encoder import EncoderLayer

_PRODUCTS_OF_A_SAMPLE = 4  # bilinear
_PARTS: Final = {  # module -> part of the total
    "backbone": "backbone",
    "input_proj": "projections",
    "transformer.encoder": "encoder",
    "transformer.decoder": "decoder",
}
_READ_ONLY: Final = "read-only values"
_NARROW_FFN: Final = "narrow FFN"
_OTHER: Final = "selection"  # query selection and the heads of the last layer


@dataclass(frozen=True)
class Complexity:
    """The cost of one forward pass of one image.

    Attributes:
        parts: billions of multiply-accumulates (GFLOPs in DETR's papers) of backbone,
            projections, encoder, decoder, and query selection with the last heads.
        parameters: of the network, in millions; frozen normalisations are none.
        samples: of each part, the share of bilinear samples.
        read_only_values: of the encoder, the value projections of tokens that a layer reads and
            does not update.
        narrow_ffn: of the encoder, the narrow FFN of low-level tokens.
    """

    parts: dict[str, float]
    parameters: float
    samples: dict[str, float]
    read_only_values: float
    narrow_ffn: float

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
    with torch.inference_mode(mode=False), torch.device("meta"):
        detector = build_detector(config).eval()
    sums: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    # A network has no preferred axis: an image and its transpose cost the same.
    for size, times in Counter((min(size), max(size)) for size in sizes).items():
        counter = _count_image(detector, size)
        found = (counter.found, counter.samples, counter.encoder_terms)
        for total, numbers in zip(sums, found, strict=True):
            for name, number in numbers.items():
                total[name] += number * times
    names = (*_PARTS.values(), _OTHER)
    parts, samples, terms = (
        {name: total[name] / len(sizes) / 1e9 for name in (*names, _READ_ONLY, _NARROW_FFN)}
        for total in sums
    )
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return Complexity(
        {name: parts[name] for name in names},
        parameters / 1e6,
        {name: samples[name] for name in names},
        terms[_READ_ONLY],
        terms[_NARROW_FFN],
    )


@torch.inference_mode(mode=False)  # in which the counter would see no operators
def _count_image(detector: LiteDETR, size: tuple[int, int]) -> _Counter:
    """Counts the multiply-accumulates of one image."""
    images = torch.empty(1, 3, *size, device="meta")
    mask = torch.empty(1, *size, dtype=torch.bool, device="meta")
    counter = _Counter()
    with _attributed(detector, counter), torch.no_grad(), counter:
        detector(images, mask)
    return counter


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-accumulates of operators for the current part."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = _OTHER
        self.found: Counter[str] = Counter()
        self.samples: Counter[str] = Counter()
        self.encoder_terms: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the operator and adds its count."""
        packet = func.overloadpacket
        if packet is torch.ops.aten.grid_sampler_2d:
            # Not called: only its shape is needed, and on the meta device it takes long.
            features, grid = args[:2]
            result = features.new_empty((*features.shape[:2], *grid.shape[1:3]))
        else:
            result = func(*args, **(kwargs or {}))
        if packet in flop_registry:  # counts a product and a sum as two
            number = flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2
        elif packet is torch.ops.aten.grid_sampler_2d:
            number = _PRODUCTS_OF_A_SAMPLE * math.prod(result.shape)
            self.samples[self.part] += number
        else:
            return result
        self.found[self.part] += int(number)
        return result

    def count_layer(self, layer: EncoderLayer, tokens: Tensor, start: int, num_low: int) -> None:
        """Adds the terms of an encoder layer that updates the tokens from `start` on."""
        batch = tokens.shape[0]
        values = layer.self_attn.value_proj.weight.numel()
        self.encoder_terms[_READ_ONLY] += batch * start * values
        if layer.small_expand:
            width = layer.linear12.weight.numel() + layer.linear22.weight.numel()
            self.encoder_terms[_NARROW_FFN] += batch * (num_low - start) * width


@contextmanager
def _attributed(detector: LiteDETR, counter: _Counter) -> Iterator[None]:
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
    for layer in detector.transformer.encoder.layers:

        def take(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            assert isinstance(module, EncoderLayer)
            tokens, _, start, num_low = arguments
            counter.count_layer(module, tokens, start, num_low)

        handles.append(layer.register_forward_pre_hook(take))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _runnable(module: nn.Module) -> list[nn.Module]:
    """The module, or what a list of modules holds, which is not called itself."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]
