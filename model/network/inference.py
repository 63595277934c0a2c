"""The inference form of a network: folded, cast, packed and merged once for one device.

A layer and its inference form are in one file. A layer that has one defines

    def inference_form(self, dtype: torch.dtype) -> nn.Module

which returns the module that takes its place: another module, or itself after changing its own
attributes (never a tensor in place). Layers without that method keep their code; only their
parameters and buffers are cast. `float32_layers` of a module names the parameters and children that
stay float32 in every precision.

`forward` is shared by both forms wherever the mathematics is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Set
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from model.network.detector import LiteDETR


def prepare_for_inference(detector: LiteDETR, dtype: torch.dtype = torch.float32) -> LiteDETR:
    """The inference form of a detector: the same output from the same input, up to rounding.

    It cannot be trained, its parameter names are not the official ones, and of one image on a CPU
    its `memory` has no rows of padding (see `model.network.geometry.image_tokens`).

    Args:
        detector: in float32 on the device that will compute; it is not changed, and shares no
            weights with the result.
        dtype: of all but the boxes, the layers that refine them and the class scores, which are
            float32: boxes in half precision would be off by pixels.

    Returns:
        The inference form, in evaluation mode.
    """
    tensors = {id(t): t for t in chain(detector.parameters(), detector.buffers())}
    network = copy.deepcopy(detector, dict(tensors))  # the modules, but not these tensors
    with torch.no_grad():
        _Conversion(tensors.keys()).convert(network, dtype)
    return network.requires_grad_(False).eval()


def convert(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The inference form of a module that nothing else uses; it is changed in place."""
    return _Conversion(frozenset()).convert(module, dtype)


class _Conversion:
    """Converts a module tree in place.

    Args:
        shared: `id` of the original's tensors, which the result may not keep.
    """

    def __init__(self, shared: Set[int]) -> None:
        self._shared = shared
        self._converted: dict[nn.Module, nn.Module] = {}

    def convert(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Converts a module and then its children; one in several places is converted once."""
        if module in self._converted:
            return self._converted[module]
        own = getattr(module, "inference_form", None)
        form: nn.Module = module if own is None else own(dtype)
        self._converted[module] = form
        if form is module:
            self._cast_and_descend(form, dtype)
        return form

    def _cast_and_descend(self, module: nn.Module, dtype: torch.dtype) -> None:
        in_float32 = getattr(module, "float32_layers", ())

        def type_of(name: str) -> torch.dtype:
            return torch.float32 if name in in_float32 else dtype

        for name, parameter in module._parameters.items():
            if id(parameter) in self._shared and parameter is not None:
                copied = parameter.to(type_of(name), copy=True)
                module._parameters[name] = nn.Parameter(copied, requires_grad=False)
        for name, buffer in module._buffers.items():
            if id(buffer) in self._shared and buffer is not None:
                module._buffers[name] = buffer.to(type_of(name), copy=True)
        # Not by `named_children`, which leaves out a module's second name.
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = self.convert(child, type_of(name))
