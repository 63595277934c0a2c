"""Finds transfers between a GPU and its host in a computation, without a GPU.

The network runs on the `meta` device, which has shapes but no values. Operations that read a value
from the device (`item`, `nonzero`, a copy to the host) fail there. A tensor that the host would
send to the device (a constant, a list of indices) is recognised by its origin: every tensor that
an operation reads must be a given one, or the result of an earlier operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HostTransferError(AssertionError):
    """An operation read a tensor that no operation on the device had computed."""


class ForbidHostTransfers(TorchDispatchMode):
    """Raises `HostTransferError` for tensors that are neither given nor computed before."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        # References are kept, so that no new tensor gets the id of a deleted one.
        self._known = {id(tensor): tensor for tensor in given}
        self.operations: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self._known:
                raise HostTransferError(f"{func} reads a host tensor {tuple(tensor.shape)}")
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            assert tensor.device.type == "meta", f"{func} returns a tensor on {tensor.device}"
            self._known[id(tensor)] = tensor
        self.operations.add(str(func))
        return result


def to_meta(module: nn.Module) -> None:
    """Moves every tensor of a module to the `meta` device, registered or not."""
    for part in module.modules():
        places: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, vars(part))
        for attributes in places:
            for name, value in list(attributes.items()):
                if isinstance(value, Tensor):
                    attributes[name] = value.detach().to("meta")


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Every tensor of a module, registered or not."""
    parts = [vars(part) for part in module.modules()]
    return _tensors([(part, part["_parameters"], part["_buffers"]) for part in parts])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
