"""The resize rule, the bucket grid and box conversions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.geometry import (
    cxcywh_to_xyxy,
    padded_size,
    reachable_buckets,
    resized_size,
    xyxy_to_cxcywh,
)

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


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 900), st.integers(0, 900), st.sampled_from([1, 7, 32, 64]))
def test_every_image_falls_into_a_listed_bucket(
    height: int, width: int, shortest: int, more: int, stride: int
) -> None:
    resized = resized_size(height, width, shortest, shortest + more)
    listed = reachable_buckets(shortest, shortest + more, stride)
    assert padded_size(*resized, stride) in listed
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("shortest", "longest", "stride"), [(8, 12, 4), (7, 23, 3), (10, 10, 4), (1, 9, 2)]
)
def test_every_listed_bucket_is_reached_by_some_image(
    shortest: int, longest: int, stride: int
) -> None:
    sides = range(1, 161)
    reached = {
        padded_size(*resized_size(height, width, shortest, longest), stride)
        for height in sides
        for width in sides
    }
    assert set(reachable_buckets(shortest, longest, stride)) == reached


def test_usual_aspects_come_first() -> None:
    buckets = reachable_buckets(800, 1333, 64)
    assert buckets[:3] == ((832, 1088), (1088, 832), (832, 832))
    assert buckets[-1] == (1344, 64)
    assert len(buckets) < 80


def test_box_conversions_undo_each_other() -> None:
    boxes = np.array([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 1.0, 1.0]])
    assert xyxy_to_cxcywh(boxes)[0].tolist() == [20.0, 40.0, 20.0, 40.0]
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
