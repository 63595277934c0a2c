"""Modules whose inference form on a CPU is one compiled call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from model.network import onednn
from model.ops import cpu


class Stack(Protocol):
    """What runs in one call, such as `model.ops.encoder_stack.EncoderStack`."""

    def take_weights(self) -> Tensor:
        """The packed weights, float32 [N]."""


StackT = TypeVar("StackT", bound=Stack)


class OneCall(nn.Module, Generic[StackT]):
    """A module with such a form; in training and elsewhere `stack` is None."""

    stacked_weights: Tensor | None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stack: StackT | None = None
        self.register_buffer("stacked_weights", None)

    @staticmethod
    def can_stack(parameter: Tensor, dtype: torch.dtype) -> bool:
        """Whether one call can take the place of oneDNN's products.

        Not where these are left out on purpose.

        Args:
            parameter: of the module, on the device that computes.
            dtype: of the inference form.
        """
        return (
            dtype == torch.float32
            and onednn.is_available(parameter.device, dtype)
            and cpu.available()
        )

    def use_stack(self, stack: StackT) -> None:
        """From now on the module is that call."""
        self.stack, self.stacked_weights = stack, stack.take_weights()

    @contextmanager
    def layer_by_layer(self) -> Iterator[None]:
        """In this block every layer is called as a module, so that its hooks are."""
        stack, self.stack = self.stack, None
        try:
            yield
        finally:
            self.stack = stack
