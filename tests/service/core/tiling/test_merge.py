"""Merging synthetic detections: each tile finds the part of an object that lies in it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.detections import Detections
from service.core.tiling.grid import Region, TileSize, tile_regions
from service.core.tiling.merge import Part, merge_detections, shifted

SIZE = (1000, 1000)
WHOLE = Region(0, 0, 1000, 1000)
TILES = tile_regions(SIZE, TileSize(400, 400), 0.2)  # starts: 0, 300, 600 on both axes

Box = tuple[float, float, float, float]
Row = tuple[Box, float, int]


def found(*rows: Row) -> Detections:
    ordered = sorted(rows, key=lambda row: -row[1])
    return Detections(
        np.array([score for _, score, _ in ordered], np.float32),
        np.array([label for _, _, label in ordered], np.int64),
        np.array([box for box, _, _ in ordered], np.float32).reshape(-1, 4),
    )


def seen(objects: Sequence[Row], *, in_whole: bool = True, visible: float = 0.15) -> list[Part]:
    """What ideal detectors find: in each tile the visible part of each object."""
    parts = [Part(WHOLE, found(*objects))] if in_whole else []
    for tile in TILES:
        rows = []
        for (left, top, right, bottom), score, label in objects:
            low = max(left, tile.left), max(top, tile.top)
            high = min(right, tile.right), min(bottom, tile.bottom)
            area = max(0.0, high[0] - low[0]) * max(0.0, high[1] - low[1])
            if area > visible * (right - left) * (bottom - top):
                rows.append(((*low, *high), score - 0.001 * tile.left / 100, label))
        parts.append(Part(tile, found(*rows)))
    return parts


def boxes(merged: Detections) -> list[list[float]]:
    rounded: list[list[float]] = merged.boxes_xyxy.round(1).tolist()
    return rounded


@pytest.mark.parametrize("in_whole", [True, False])
@pytest.mark.parametrize(
    "box",
    [
        pytest.param((20, 30, 90, 80), id="one tile"),
        pytest.param((310, 20, 390, 90), id="whole in two tiles"),
        pytest.param((310, 310, 390, 390), id="whole in four tiles"),
        pytest.param((280, 20, 340, 90), id="whole in one, cut in the other"),
        pytest.param((250, 100, 500, 220), id="cut in two"),
        pytest.param((100, 250, 220, 520), id="cut in two, one above the other"),
        pytest.param((280, 280, 420, 420), id="cut in four"),
        pytest.param((100, 120, 900, 180), id="cut in three"),
        pytest.param((250, 240, 750, 700), id="cut in nine"),
    ],
)
def test_an_object_across_tiles_is_one_detection(box: Box, in_whole: bool) -> None:
    merged = merge_detections(seen([(box, 0.9, 1)], in_whole=in_whole), SIZE)
    assert boxes(merged) == [list(map(float, box))]
    assert merged.labels.tolist() == [1]


def test_a_cut_box_does_not_replace_a_whole_one_of_a_lower_score() -> None:
    parts = [
        Part(TILES[0], found(((350, 50, 400, 90), 0.95, 0))),
        Part(TILES[1], found(((350, 50, 430, 90), 0.5, 0))),
    ]
    assert boxes(merge_detections(parts, SIZE)) == [[350, 50, 430, 90]]


def test_objects_next_to_each_other_and_inside_one_another_stay() -> None:
    objects = [
        ((20, 20, 180, 180), 0.9, 0),
        ((60, 60, 120, 120), 0.8, 0),  # inside the first
        ((182, 20, 300, 180), 0.7, 0),
        ((305, 20, 350, 180), 0.6, 0),
        ((20, 20, 180, 180), 0.5, 1),  # of another class
    ]
    merged = merge_detections(seen(objects), SIZE)
    assert boxes(merged) == [list(map(float, box)) for box, _, _ in objects]


def test_detections_of_one_tile_are_not_merged_with_each_other() -> None:
    rows = [((20, 20, 100, 100), 0.9, 0), ((25, 25, 105, 105), 0.8, 0)]
    assert len(merge_detections([Part(TILES[0], found(*rows))], SIZE)) == 2


def test_cut_boxes_of_different_objects_are_not_joined() -> None:
    parts = [
        Part(TILES[0], found(((250, 20, 400, 80), 0.9, 0))),
        Part(TILES[1], found(((300, 150, 500, 260), 0.8, 0), ((300, 20, 460, 80), 0.7, 1))),
    ]
    assert len(merge_detections(parts, SIZE)) == 3


def test_pieces_are_joined_without_any_overlap() -> None:
    left, right = Region(0, 0, 500, 1000), Region(500, 0, 1000, 1000)
    parts = [
        Part(left, found(((400, 100, 499, 200), 0.6, 0))),
        Part(right, found(((501, 102, 640, 203), 0.8, 0))),
    ]
    merged = merge_detections(parts, SIZE)
    assert boxes(merged) == [[400, 100, 640, 203]]
    assert merged.scores.tolist() == pytest.approx([0.8])


def test_a_tile_at_the_border_of_the_image_does_not_cut_there() -> None:
    parts = [
        Part(TILES[0], found(((0, 0, 50, 50), 0.5, 0))),
        Part(WHOLE, found(((0, 0, 300, 300), 0.9, 0))),
    ]
    assert len(merge_detections(parts, SIZE)) == 2


def test_nothing_is_merged_to_nothing() -> None:
    assert len(merge_detections([], SIZE)) == 0
    assert len(merge_detections([Part(tile, found()) for tile in TILES], SIZE)) == 0


def test_boxes_of_a_tile_become_those_of_the_image() -> None:
    region = Region(30, 50, 430, 450)
    assert boxes(shifted(found(((1, 2, 3, 4), 0.5, 0)), region)) == [[31, 52, 33, 54]]


def test_thousands_of_detections_are_limited_to_the_best() -> None:
    rng = np.random.default_rng(3)
    parts = []
    for tile in TILES:
        corners = rng.uniform(0, 350, (100, 2)) + np.array(tile[:2])
        ends = corners + rng.uniform(5, 50, (100, 2))
        every = np.concatenate((corners, ends), axis=1).astype(np.float32)
        scores = np.sort(rng.uniform(0, 1, 100).astype(np.float32))[::-1].copy()
        parts.append(Part(tile, Detections(scores, rng.integers(0, 3, 100), every)))
    merged = merge_detections(parts, SIZE)
    assert 100 < len(merged) <= 512
    assert (np.diff(merged.scores) <= 0).all()


@st.composite
def random_parts(draw: st.DrawFn) -> list[Part]:
    """Detections of any kind: whole, cut at edges of tiles, equal ones, empty boxes."""
    parts = []
    for region in draw(st.lists(st.sampled_from((WHOLE, *TILES)), unique=True, max_size=5)):
        rows = []
        for _ in range(draw(st.integers(0, 4))):
            xs = sorted(draw(st.tuples(*[st.integers(region.left // 50, region.right // 50)] * 2)))
            ys = sorted(draw(st.tuples(*[st.integers(region.top // 50, region.bottom // 50)] * 2)))
            box = (50.0 * xs[0], 50.0 * ys[0], 50.0 * xs[1], 50.0 * ys[1])
            rows.append((box, draw(st.sampled_from((0.1, 0.5, 0.9))), draw(st.integers(0, 1))))
        parts.append(Part(region, found(*rows)))
    return parts


def _rows(merged: Detections) -> list[tuple[float, ...]]:
    columns = zip(
        merged.scores.tolist(), merged.labels.tolist(), merged.boxes_xyxy.tolist(), strict=True
    )
    return [(score, label, *box) for score, label, box in columns]


@given(random_parts(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_merging_is_independent_of_the_order_and_idempotent(parts: list[Part], rng: Random) -> None:
    merged = merge_detections(parts, SIZE)
    shuffled = []
    for region, detections in rng.sample(parts, len(parts)):
        order = np.array(rng.sample(range(len(detections)), len(detections)), np.int64)
        shuffled.append(Part(region, detections.keep(order)))
    assert _rows(merge_detections(shuffled, SIZE)) == _rows(merged)
    assert _rows(merge_detections([Part(WHOLE, merged)], SIZE)) == _rows(merged)
    assert set(merged.labels.tolist()) <= {int(e) for part in parts for e in part.detections.labels}
