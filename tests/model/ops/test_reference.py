"""The PyTorch reference against the formula written out point by point."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.ops import reference
from tests.model.ops.attention_cases import (
    KINDS,
    Case,
    Kind,
    assert_close,
    attend,
    gradients,
    random_case,
)


def _bilinear(plane: Tensor, x: float, y: float) -> Tensor:
    """Sample of plane [H, W, D] at pixel position (x, y); zeros outside."""
    height, width, channels = plane.shape
    sample = plane.new_zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                sample += weight * plane[row, column]
    return sample


def _position(case: Case, at: tuple[int, int, int, int, int]) -> tuple[float, float]:
    image, query, head, level, point = at
    height, width = case.spatial_shapes[level]
    offset_level = 0 if case.sampling_offsets.shape[3] == 1 else level
    x, y = case.sampling_offsets[image, query, head, offset_level, point].tolist()
    box = case.reference_points[image, query, level].tolist()
    if len(box) == 2:
        return (box[0] + x / width) * width - 0.5, (box[1] + y / height) * height - 0.5
    points = case.sampling_offsets.shape[4]
    across, down = x / points * box[2] * 0.5, y / points * box[3] * 0.5
    return (box[0] + across) * width - 0.5, (box[1] + down) * height - 0.5


def _point_by_point(case: Case) -> Tensor:
    batch, queries, heads, _, points, _ = case.sampling_offsets.shape
    channels = case.value.shape[-1]
    output = case.value.new_zeros(batch, queries, heads, channels)
    for image, query, head in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads))):
        values, scores, start = [], [], 0
        for level, (height, width) in enumerate(case.spatial_shapes):
            rows = slice(start, start + height * width)
            start = rows.stop
            for point in range(points):
                x, y = _position(case, (int(image), int(query), int(head), level, point))
                plane = case.value[image, rows, head].view(height, width, channels)
                values.append(_bilinear(plane, x, y))
                if case.query is None:
                    continue
                keys = case.value if case.key is None else case.key
                key = _bilinear(keys[image, rows, head].view(height, width, channels), x, y)
                scores.append(case.query[image, query, head] @ key / math.sqrt(channels))
        logits = torch.stack(scores) if scores else case.logits[image, query, head]  # type: ignore[index]
        output[image, query, head] = logits.softmax(0) @ torch.stack(values)
    return output.flatten(2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("same_loc", [False, True], ids=["own offsets", "same_loc"])
def test_reference_is_the_formula_point_by_point(kind: Kind, boxes: bool, same_loc: bool) -> None:
    case = random_case(
        kind, channels=5, heads=2, queries=3, points=3, boxes=boxes, same_loc=same_loc
    ).mapped(torch.float64)
    assert_close(attend(reference, case), _point_by_point(case), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
def test_reference_gradients_agree_with_finite_differences(kind: Kind, boxes: bool) -> None:
    case = random_case(
        kind,
        batch=1,
        heads=2,
        channels=3,
        queries=2,
        points=2,
        shapes=((4, 3), (2, 2)),
        boxes=boxes,
        seed=4,
    ).mapped(torch.float64, leaf=True)
    names, tensors = zip(*case.tensors().items(), strict=True)

    def function(*inputs: Tensor) -> Tensor:
        return attend(reference, replace(case, **dict(zip(names, inputs, strict=True))))  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_values_are_sampled_at_float32_positions(kind: Kind) -> None:
    case = random_case(kind, shapes=((60, 160),), queries=40)
    exact = attend(reference, case.mapped(torch.float64))
    located = {"reference_points": case.reference_points, "sampling_offsets": case.sampling_offsets}
    half = replace(case.mapped(torch.bfloat16), **located)  # type: ignore[arg-type]
    output = attend(reference, half)
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), exact, 2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_lower_the_reference_precision(kind: Kind) -> None:
    case = random_case(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = attend(reference, case)
    assert torch.equal(output, attend(reference, case))


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("kind", KINDS)
def test_positions_that_are_not_finite_count_as_outside(kind: Kind, odd: float) -> None:
    case = random_case(kind, boxes=True)
    odd_offsets, far_offsets = case.sampling_offsets.clone(), case.sampling_offsets.clone()
    odd_offsets[:, :, :, 0, 1, 0] = odd
    far_offsets[:, :, :, 0, 1, 0] = 1e6
    far = gradients(reference, replace(case, sampling_offsets=far_offsets), torch.float32)
    output, grads = gradients(reference, replace(case, sampling_offsets=odd_offsets), torch.float32)
    assert torch.equal(output, far[0])
    for name, grad in grads.items():
        assert torch.equal(grad, far[1][name]), name
