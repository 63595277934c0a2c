"""Names of a network's tensors: which are the same tensor, and whether a file fits.

Used before `load_state_dict`. The official network registers its shared heads several times
(`bbox_embed.0..5`, `transformer.decoder.bbox_embed.0..5`, ...), so a state dict repeats them. Which
names belong together is read from the built network; no name is written down here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.config import ModelConfig
from model.network.detector import LiteDETR, build_detector
from model.weights.header import CheckpointError

_NAMES_SHOWN = 4


@dataclass(frozen=True)
class TensorLayout:
    """The tensors of a network; only their names, shapes and dtypes are used."""

    tensors: dict[str, Tensor]  # owner's name -> the network's own tensor
    aliases: dict[str, tuple[str, ...]]  # owner's name -> all names of that tensor, owner first

    @classmethod
    def of(cls, detector: nn.Module) -> TensorLayout:
        """Reads the layout of a network; the owner of a shared tensor is its shortest name."""
        named = detector.state_dict(keep_vars=True)
        groups: dict[int, list[str]] = {}
        for name, tensor in named.items():
            groups.setdefault(id(tensor), []).append(name)
        ordered = [tuple(sorted(names, key=lambda n: (len(n), n))) for names in groups.values()]
        return cls(
            tensors={names[0]: named[names[0]] for names in ordered},
            aliases={names[0]: names for names in ordered},
        )

    def owned(self, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns each tensor of a state dict once, under its owner's name.

        Args:
            path: the file that the tensors come from or go to, named in errors.
            tensors: a state dict; of a shared tensor at least one name.

        Raises:
            CheckpointError: for names that are missing or not the network's, and if two names of
                one tensor differ.
        """
        owned = {}
        for owner, names in self.aliases.items():
            present = [name for name in names if name in tensors]
            for name in present[1:]:
                if not _same(tensors[name], tensors[present[0]]):
                    raise CheckpointError(
                        path, f"{present[0]} and {name} should be one tensor but differ"
                    )
            if present:
                owned[owner] = tensors[present[0]]
        extra = set(tensors) - self.names()
        check_names(path, expected=self.tensors, present={*owned, *extra})
        return owned

    def names(self) -> set[str]:
        """Returns every name in a full state dict of this network."""
        return {name for names in self.aliases.values() for name in names}

    def with_aliases(self, owned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `owned`: returns every tensor under each of its names, sharing memory."""
        return {name: owned[owner] for owner, names in self.aliases.items() for name in names}

    def check_fit(self, path: Path, owned: Mapping[str, Tensor]) -> None:
        """Refuses tensors of another shape or kind (floating or integer) than the network's.

        Raises:
            CheckpointError: naming the first tensors that differ.
        """
        self.check_shapes(path, {name: tuple(tensor.shape) for name, tensor in owned.items()})
        wrong = [
            f"{name} is {owned[name].dtype}, not {tensor.dtype}"
            for name, tensor in self.tensors.items()
            if owned[name].is_floating_point() != tensor.is_floating_point()
            or owned[name].is_complex()
        ]
        if wrong:
            raise CheckpointError(path, f"tensors of another dtype: {listed(wrong)}")

    def check_shapes(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuses shapes that differ from the network's.

        Args:
            path: named in the error.
            shapes: owner's name -> shape, for exactly the names of `tensors`.

        Raises:
            CheckpointError: naming the first tensors that differ.
        """
        wrong = [
            f"{name} is {list(shapes[name])}, not {list(tensor.shape)}"
            for name, tensor in self.tensors.items()
            if tuple(tensor.shape) != shapes[name]
        ]
        if wrong:
            raise CheckpointError(path, f"tensors of another shape: {listed(wrong)}")


class _WithoutRandomValues(TorchFunctionMode):
    """Leaves out the draws of initial weights, which take most of the time of building."""

    # The functions of torch.nn.init that a mode can replace; others run.
    _DRAWS = frozenset(
        (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_)
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, unless it draws; initialisers pass their tensor by name."""
        kwargs = kwargs or {}
        if func in self._DRAWS:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build_network(config: ModelConfig, path: Path) -> LiteDETR:
    """Builds a network whose weights are to be replaced: they are not initialised.

    The state of the random generator is unchanged, as training exports while it runs.

    Args:
        config: the architecture.
        path: the file of the config, named in errors.

    Raises:
        CheckpointError: if no network can have this architecture.
    """
    try:
        with torch.random.fork_rng(devices=[]), _WithoutRandomValues():
            return build_detector(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"its config cannot be built: {error}") from error


def check_names(path: Path, *, expected: Iterable[str], present: Iterable[str]) -> None:
    """Refuses names that are missing or too many.

    Raises:
        CheckpointError: naming the first of them.
    """
    expected, present = set(expected), set(present)
    problems = []
    if missing := expected - present:
        problems.append(f"tensors are missing: {listed(sorted(missing))}")
    if extra := present - expected:
        problems.append(f"tensors are not this network's: {listed(sorted(extra))}")
    if problems:
        raise CheckpointError(path, "; ".join(problems))


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses NaN and infinity.

    Raises:
        CheckpointError: naming the first of these tensors.
    """
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        raise CheckpointError(path, f"tensors hold NaN or infinity: {listed(bad)}")


def listed(items: list[str]) -> str:
    """Joins the first few items and the number of the others."""
    shown = ", ".join(items[:_NAMES_SHOWN])
    more = len(items) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same, or equal in dtype and values."""
    return left is right or (left.dtype == right.dtype and torch.equal(left, right))


def _is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    if not tensor.is_floating_point():
        return True
    # One such element makes the sum non-finite, and a sum is many times faster than testing each;
    # only a sum that overflows needs the exact test.
    total = tensor.detach().sum(dtype=torch.float32 if tensor.element_size() < 4 else None)  # noqa: PLR2004
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())
