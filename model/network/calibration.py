"""Finds the ranges of a backbone's maps, which its convolutions in int8 need.

ranges of the maps on some images -> a file next to the weights (`model.weights.int8_ranges`) ->
`model.network.int8`
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import DeviceError
from model.network import onednn
from model.network.backbone.base import Backbone
from model.network.convolution import FoldedConvolution
from model.network.inference import convert

INPUT = "images"  # the name of the normalised images among the maps


@dataclass(frozen=True)
class Step:
    """A convolution or pooling layer of a backbone, and the maps that it reads and writes."""

    name: str  # of the module
    source: str
    result: str  # of a pooling layer: the source, as its range is the same
    add: str | None  # the map that is added to the result


def unpacked_form(body: Backbone) -> Backbone:
    """The inference form in float32 of torch's public operators only; shares no weights."""
    with onednn.not_used(), torch.no_grad():
        form: Backbone = convert(copy.deepcopy(body), torch.float32)  # type: ignore[assignment]
    return form.requires_grad_(False).eval()


def trace(form: Backbone) -> tuple[list[Step], list[str]]:
    """The layers of an `unpacked_form` in the order of execution, and the maps that it returns.

    Raises:
        DeviceError: if the network is not made of convolutions.
    """
    names: dict[int, str] = {}  # of maps, by `id` of the tensor
    kept: list[Any] = []  # so that no `id` is used twice
    steps: list[Step] = []

    def observe(name: str, module: nn.Module, inputs: tuple[Any, ...], result: Tensor) -> None:
        source = names[id(inputs[0])]
        add = inputs[1] if len(inputs) > 1 else None
        written = source if isinstance(module, nn.MaxPool2d) else name
        names[id(result)] = written
        kept.append((inputs, result))
        steps.append(Step(name, source, written, None if add is None else names[id(add)]))

    images = torch.zeros(1, 3, 64, 64)
    names[id(images)] = INPUT
    try:
        with _observed(form, observe), torch.inference_mode():
            maps = form(images)
        return steps, [names[id(each)] for each in maps]
    except KeyError:  # a map that no layer wrote
        kind = type(form).__name__
        raise DeviceError(f"precision=int8 needs a backbone of convolutions, not {kind}") from None


def find_ranges(body: Backbone, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The least, the largest and the mean number of each channel of each map.

    Args:
        body: the network, in float32; not changed.
        batches: normalised images [B, 3, H, W].

    Returns:
        Float32 [3, C] by the names of `trace`.

    Raises:
        DeviceError: if the network is not made of convolutions.
        ValueError: if there are no images, or a map is not finite.
    """
    form = unpacked_form(body)
    trace(form)
    found: dict[str, list[Tensor]] = {}

    def observe(name: str, module: nn.Module, _inputs: object, result: Tensor) -> None:
        if isinstance(module, nn.MaxPool2d):
            return
        axes = (0, 2, 3)
        one = torch.stack((result.amin(axes), result.amax(axes), result.mean(axes)))
        if not one.isfinite().all():
            raise ValueError(f"the map {name} is not finite")
        found.setdefault(name, []).append(one)

    with _observed(form, observe), torch.inference_mode():
        for images in batches:
            form(images)
    if not found:
        raise ValueError("there are no images")
    return {name: _together(torch.stack(each)) for name, each in found.items()}


def _together(each: Tensor) -> Tensor:
    low, high, mean = each.unbind(1)
    return torch.stack((low.amin(0), high.amax(0), mean.mean(0)))


@contextmanager
def _observed(
    form: Backbone, observe: Callable[[str, nn.Module, tuple[Any, ...], Tensor], None]
) -> Iterator[None]:
    """Calls a function after each convolution and pooling layer in this block."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, named: Any, result: Tensor) -> None:
            add = named.get("add")
            observe(name, module, (*inputs, *([] if add is None else [add])), result)

        return hook

    handles = [
        module.register_forward_hook(hook_of(name), with_kwargs=True)
        for name, module in form.named_modules()
        if isinstance(module, FoldedConvolution | nn.MaxPool2d)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
