"""The resize rule, the bucket grid and box conversions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.geometry import cxcywh_to_xyxy, padded_size, resized_size, xyxy_to_cxcywh

SIDES = st.integers(1, 100_000)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),  # COCO landscape
        ((640, 480), (1066, 800)),  # the same in portrait
        ((400, 1000), (533, 1332)),  # the long side is the bound
        ((800, 800), (800, 800)),
        ((800, 1000), (800, 1000)),  # already right: left alone
        ((1, 100_000), (1, 1333)),  # a line of pixels keeps one row
        ((100_000, 1), (1333, 1)),
    ],
)
def test_sizes_follow_the_published_rule(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, 800, 1333) == expected


@given(SIDES, SIDES)
def test_no_side_passes_the_bound_or_vanishes(height: int, width: int) -> None:
    resized = resized_size(height, width, 384, 512)
    assert min(resized) >= 1
    assert max(resized) <= 512
    assert resized_size(width, height, 384, 512) == resized[::-1]


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="0 x 5"):
        resized_size(0, 5, 384, 512)


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_buckets_are_the_next_grid_size(height: int, width: int) -> None:
    padded = padded_size(height, width, 64)
    assert all(side % 64 == 0 for side in padded)
    assert 0 <= padded[0] - height < 64
    assert 0 <= padded[1] - width < 64


def test_box_conversions_undo_each_other() -> None:
    boxes = np.array([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 1.0, 1.0]])
    assert xyxy_to_cxcywh(boxes)[0].tolist() == [20.0, 40.0, 20.0, 40.0]
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
