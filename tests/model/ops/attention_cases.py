"""Inputs for the deformable-attention tests, and the two operations on them by one name."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["plain", "shared keys", "separate keys"]
KINDS: tuple[Kind, ...] = ("plain", "shared keys", "separate keys")

Shapes = tuple[tuple[int, int], ...]


# A module with both operations: `model.ops`, its reference or its compiled operators.
Implementation = ModuleType


@dataclass(frozen=True)
class Case:
    """One call's inputs; `query` and `logits` exclude each other."""

    spatial_shapes: Shapes
    value: Tensor
    reference_points: Tensor
    sampling_offsets: Tensor
    query: Tensor | None = None
    key: Tensor | None = None
    logits: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}

    def mapped(self, dtype: torch.dtype, *, leaf: bool = False) -> Case:
        tensors = {
            name: tensor.detach().to(dtype, copy=True).requires_grad_(leaf)
            for name, tensor in self.tensors().items()
        }
        return replace(self, **tensors)  # type: ignore[arg-type]

    def image(self, index: int) -> Case:
        """The case of one image of the batch alone."""
        tensors = {name: t[index : index + 1] for name, t in self.tensors().items()}
        return replace(self, **tensors)  # type: ignore[arg-type]


def random_case(  # noqa: PLR0913 - a case is its sizes
    kind: Kind,
    *,
    batch: int = 2,
    heads: int = 3,
    channels: int = 32,
    queries: int = 11,
    points: int = 4,
    shapes: Shapes = ((9, 7), (5, 4), (3, 3), (2, 1)),
    boxes: bool = False,
    same_loc: bool = False,
    seed: int = 0,
) -> Case:
    """Standard normal inputs, references all over the map, points up to some pixels away."""
    generator = torch.Generator().manual_seed(seed)
    levels, tokens = len(shapes), sum(height * width for height, width in shapes)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    offsets = 2.0 * normal(batch, queries, heads, 1 if same_loc else levels, points, 2)
    references = torch.rand(batch, queries, levels, 4 if boxes else 2, generator=generator)
    value, key = (normal(batch, tokens, heads, channels) for _ in range(2))
    return Case(
        shapes,
        value,
        references,
        offsets,
        query=None if kind == "plain" else normal(batch, queries, heads, channels),
        key=key if kind == "separate keys" else None,
        logits=normal(batch, queries, heads, levels * points) if kind == "plain" else None,
    )


def attend(implementation: Implementation, case: Case) -> Tensor:
    """The case's attention, [B, Q, M*D]."""
    located = (case.spatial_shapes, case.reference_points, case.sampling_offsets)
    output: Tensor
    if case.query is None:
        output = implementation.ms_deform_attn(case.value, *located, case.logits)
    else:
        output = implementation.key_aware_deform_attn(case.query, case.key, case.value, *located)
    return output


def gradients(
    implementation: Implementation, case: Case, dtype: torch.dtype, seed: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and the gradient of every input, for a random gradient of the output."""
    leaf = case.mapped(dtype, leaf=True)
    output = attend(implementation, leaf)
    generator = torch.Generator().manual_seed(seed)
    output.backward(torch.randn(output.shape, generator=generator).to(output))
    grads = {name: tensor.grad for name, tensor in leaf.tensors().items()}
    return output.detach(), {name: grad for name, grad in grads.items() if grad is not None}


def assert_close(actual: Tensor, exact: Tensor, tolerance: float = 1e-4) -> None:
    """Within the tolerance, relative to the largest exact value where that exceeds 1."""
    assert actual.shape == exact.shape
    if exact.numel() == 0:
        return
    scale = max(1.0, float(exact.abs().max()))
    error = float((actual.double() - exact.double()).abs().max())
    assert error <= tolerance * scale, f"off by {error} at a scale of {scale}"
