"""Exponential moving average of the weights, which training exports."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ExponentialAverage:
    """Averages a module's floating-point state; other state is copied.

    Args:
        module: the module.
        decay: weight of the old average after the warm-up.
        warmup: time constant in updates; the decay starts at 0 and grows to `decay`.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: int) -> None:
        """Starts with the module's state."""
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.state = {name: tensor.clone() for name, tensor in _unique_state(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Updates the average after an optimizer step."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / max(self.warmup, 1)))
        for name, tensor in _unique_state(module).items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - decay)
            else:
                self.state[name].copy_(tensor)

    def full_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Returns the averaged state under all of the module's names, shared tensors included."""
        names = {tensor.data_ptr(): name for name, tensor in _unique_state(module).items()}
        return {
            name: self.state[names[tensor.data_ptr()]] if tensor.numel() else tensor
            for name, tensor in module.state_dict().items()
        }

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Continues from a saved `state` and `updates`.

        Raises:
            ValueError: if the names are not the module's.
        """
        if state.keys() != self.state.keys():
            odd = sorted(state.keys() ^ self.state.keys())
            raise ValueError(f"the saved average does not fit this model: {odd[:3]}")
        for name, tensor in state.items():
            self.state[name].copy_(tensor)
        self.updates = updates


def _unique_state(module: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict with one name for each shared tensor."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            unique[name] = tensor
    return unique
