"""Deformable attention, plain and key-aware: one function each, for every device.

The attention module projects; these functions locate, sample, weigh and sum. Each picks the fastest
implementation for its inputs; all return the numbers of `reference.py` up to rounding.
Points outside a map sample 0 and, in key-aware attention, score 0: they stay in the softmax. So do
points whose position is NaN or infinite.
"""

# The operations have the arguments of the formulas.
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from model.ops import cpu, cuda, gathers, operators, reference
from model.ops.padding import without_padding

Implementation = Literal["auto", "reference", "cpu", "gathers"]

__all__ = [
    "Implementation",
    "computed_by",
    "implementation_name",
    "kernel_failures",
    "key_aware_deform_attn",
    "ms_deform_attn",
    "select_implementation",
]


class _Selection:
    """The choice of `select_implementation`, for the whole process."""

    choice: Implementation = "auto"


def select_implementation(choice: Implementation) -> None:
    """Chooses how the process computes deformable attention.

    Args:
        choice: "auto" uses the compiled kernels where they fit; "reference" always uses plain
            PyTorch; "cpu" as "auto", but fails where the CPU kernels cannot be built; "gathers"
            is for networks that are exported.

    Raises:
        ValueError: for another choice.
        RuntimeError: for "cpu" where the kernels cannot be built.
    """
    if choice not in get_args(Implementation):
        known = ", ".join(get_args(Implementation))
        raise ValueError(f"implementation must be one of {known}, not {choice!r}")
    if choice == "cpu" and not cpu.available():
        raise RuntimeError("the compiled CPU kernels are not available here")
    _Selection.choice = choice


@contextmanager
def computed_by(choice: Implementation) -> Iterator[None]:
    """As `select_implementation`, for a block of code; not for use in several threads."""
    before = _Selection.choice
    select_implementation(choice)
    try:
        yield
    finally:
        _Selection.choice = before


def implementation_name(device: torch.device | str) -> str:
    """Which implementation computes attention on a device, for inference in the usual sizes.

    Returns:
        "cpu" or "cuda" (compiled kernels), "reference" or "gathers", or "cuda+reference" if some of
        the kernels called so far do not work on that GPU.
    """
    device = torch.device(device)
    if _Selection.choice in ("reference", "gathers"):
        return _Selection.choice
    if device.type == "cpu" and cpu.available():
        return "cpu"
    if device.type != "cuda" or not cuda.available(device):
        return "reference"
    return "cuda+reference" if cuda.failures(device) else "cuda"


def kernel_failures(device: torch.device | str) -> dict[str, str]:
    """The GPU kernels that were called and do not work on that device: reason by kernel."""
    return cuda.failures(torch.device(device))


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    valid_ratios: Tensor | None = None,
) -> Tensor:
    """Plain multi-scale deformable attention (arXiv 2010.04159, eq. 3).

    Args:
        value: [B, S, M, D] tokens of all levels, one level after another; zero on padding, unless
            `valid_ratios` say where that is.
        spatial_shapes: (H, W) of each of the L levels; S is the sum of H*W.
        reference_points: [B, Q, L, 2] points (offsets count pixels) or [B, Q, L, 4] cxcywh boxes
            (offsets count half boxes over P); 0..1 of the padded map.
        sampling_offsets: [B, Q, M, L, P, 2], or [B, Q, M, 1, P, 2] shared by all levels.
        attention_logits: [B, Q, M, L*P], before the softmax.
        valid_ratios: [B, L, 2], share (w, h) of each map that is inside the image; the rest, at the
            right and at the bottom, is padding and counts as zero. None: no padding, or zero.

    Returns:
        [B, Q, M*D], dtype of `value`.

    Raises:
        ValueError: for shapes that contradict one another.
    """
    _check(value, spatial_shapes, reference_points, sampling_offsets, valid_ratios)
    batch, queries, heads, _, points, _ = sampling_offsets.shape
    if attention_logits.shape != (batch, queries, heads, len(spatial_shapes) * points):
        raise ValueError(
            f"attention_logits {tuple(attention_logits.shape)} do not fit sampling_offsets "
            f"{tuple(sampling_offsets.shape)} with {len(spatial_shapes)} levels"
        )
    given = (value, reference_points, sampling_offsets, attention_logits)
    chosen = _implementation(spatial_shapes, value, sampling_offsets, given)
    located = (spatial_shapes, reference_points, sampling_offsets)
    output: Tensor
    if _knows_padding(chosen, given):
        output = chosen.ms_deform_attn(value, *located, attention_logits, valid_ratios)
    else:
        value = _zero_padding(value, spatial_shapes, valid_ratios)
        output = chosen.ms_deform_attn(value, *located, attention_logits)
    return output


def key_aware_deform_attn(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    valid_ratios: Tensor | None = None,
) -> Tensor:
    """Key-aware deformable attention (arXiv 2303.07335, section 3.4).

    A point's weight is the softmax over all L*P points of query . sampled key / sqrt(D).

    Args:
        query: [B, Q, M, D], projected.
        key: [B, S, M, D], on padding as `value`; None (or `value` itself): the keys are the values,
            and one gather serves both.
        value: [B, S, M, D] tokens of all levels, one level after another; zero on padding, unless
            `valid_ratios` say where that is.
        spatial_shapes: (H, W) of each of the L levels; S is the sum of H*W.
        reference_points: [B, Q, L, 2] points or [B, Q, L, 4] cxcywh boxes, as `ms_deform_attn`.
        sampling_offsets: [B, Q, M, L, P, 2], or [B, Q, M, 1, P, 2] shared by all levels.
        valid_ratios: as `ms_deform_attn`.

    Returns:
        [B, Q, M*D], dtype of `value`.

    Raises:
        ValueError: for shapes that contradict one another.
    """
    _check(value, spatial_shapes, reference_points, sampling_offsets, valid_ratios)
    if query.shape != (*sampling_offsets.shape[:3], value.shape[3]):
        raise ValueError(
            f"query {tuple(query.shape)} does not fit value {tuple(value.shape)} and "
            f"sampling_offsets {tuple(sampling_offsets.shape)}"
        )
    if key is not None and key.shape != value.shape:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} differ in shape")
    key = None if key is value else key
    given = (query, key, value, reference_points, sampling_offsets)
    chosen = _implementation(spatial_shapes, value, sampling_offsets, given)
    located = (spatial_shapes, reference_points, sampling_offsets)
    output: Tensor
    if _knows_padding(chosen, given):
        output = chosen.key_aware_deform_attn(query, key, value, *located, valid_ratios)
    else:
        value = _zero_padding(value, spatial_shapes, valid_ratios)
        key = None if key is None else _zero_padding(key, spatial_shapes, valid_ratios)
        output = chosen.key_aware_deform_attn(query, key, value, *located)
    return output


def _knows_padding(chosen: ModuleType, given: Sequence[Tensor | None]) -> bool:
    """Whether an implementation takes `valid_ratios`: the kernels of GPUs, without gradients."""
    tensors = [tensor for tensor in given if tensor is not None]
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return chosen is operators and tensors[0].device.type != "cpu" and not differentiated


def _zero_padding(
    tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor | None
) -> Tensor:
    if valid_ratios is None:
        return tokens
    return without_padding(tokens, spatial_shapes, valid_ratios)


def _implementation(
    spatial_shapes: Sequence[tuple[int, int]],
    value: Tensor,
    sampling_offsets: Tensor,
    given: Sequence[Tensor | None],
) -> ModuleType:
    if _Selection.choice == "gathers":
        return gathers
    tensors = [tensor for tensor in given if tensor is not None]
    if _Selection.choice == "reference" or len({tensor.device for tensor in tensors}) > 1:
        return reference
    if value.device.type == "cpu":
        fits = all(tensor.dtype in cpu.DTYPES for tensor in tensors)
        return operators if fits and cpu.available() else reference
    if value.device.type == "cuda":
        fits = cuda.takes(value, spatial_shapes, sampling_offsets)
        return operators if fits else reference
    return reference


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    valid_ratios: Tensor | None,
) -> None:
    """Refuses shapes with which a kernel would read beyond its arrays.

    Raises:
        ValueError: naming the tensors that do not fit.
    """
    levels = len(spatial_shapes)
    if levels == 0 or min(min(shape) for shape in spatial_shapes) < 1:
        raise ValueError(f"spatial_shapes {list(spatial_shapes)} are not positive (H, W) pairs")
    tokens = sum(height * width for height, width in spatial_shapes)
    if value.dim() != 4 or value.shape[1] != tokens:  # noqa: PLR2004 - [B, S, M, D]
        raise ValueError(f"value {tuple(value.shape)} is not [B, {tokens}, M, D]")
    batch, _, heads, _ = value.shape
    offsets = sampling_offsets.shape
    if (
        len(offsets) != 6  # noqa: PLR2004 - [B, Q, M, L, P, 2]
        or (offsets[0], offsets[2], offsets[5]) != (batch, heads, 2)
        or offsets[3] not in (1, levels)
        or offsets[4] < 1
    ):
        raise ValueError(
            f"sampling_offsets {tuple(offsets)} are not [{batch}, Q, {heads}, {levels} or 1, P, 2]"
        )
    if reference_points.shape[:-1] != (batch, offsets[1], levels) or (
        reference_points.shape[-1] not in (2, 4)
    ):
        raise ValueError(
            f"reference_points {tuple(reference_points.shape)} are not "
            f"[{batch}, {offsets[1]}, {levels}, 2 or 4]"
        )
    if valid_ratios is not None and valid_ratios.shape != (batch, levels, 2):
        raise ValueError(f"valid_ratios {tuple(valid_ratios.shape)} are not [{batch}, {levels}, 2]")
