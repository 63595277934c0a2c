"""Whether a computation would keep a GPU waiting for its host, found out without a GPU.

The network runs on the `meta` device: shapes alone. Whatever needs a number from the device
(`item`, `nonzero`, a copy to the host) fails there by itself. What the host would send to the
device (a constant, a list of indices) is told by where it comes from: every tensor that an
operation reads must be one of those given, or have been made by an operation before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FromTheHost(AssertionError):
    """An operation read a tensor that nothing on the device had made."""


class Unhosted(TorchDispatchMode):
    """Raises `FromTheHost` where an operation reads what neither is given nor was made before."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        # Kept, so that no other tensor gets the identity of one that is gone.
        self._known = {id(tensor): tensor for tensor in given}
        self.operations: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self._known:
                raise FromTheHost(f"{func} reads a tensor {tuple(tensor.shape)} of the host's")
        answer = func(*args, **(kwargs or {}))
        for tensor in _tensors(answer):
            assert tensor.device.type == "meta", f"{func} answers on {tensor.device}"
            self._known[id(tensor)] = tensor
        self.operations.add(str(func))
        return answer


def to_meta(module: nn.Module) -> None:
    """Moves every tensor that a module keeps to the `meta` device, registered or not."""
    for part in module.modules():
        places: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, vars(part))
        for kept in places:
            for name, value in list(kept.items()):
                if isinstance(value, Tensor):
                    kept[name] = value.detach().to("meta")


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Every tensor that a module keeps, registered or not."""
    parts = [vars(part) for part in module.modules()]
    return _tensors([(part, part["_parameters"], part["_buffers"]) for part in parts])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
