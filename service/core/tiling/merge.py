"""One result from the detections in the tiles of an image and in the whole image.

An object near a seam is found in several tiles, in some of them only in part. The rules compare
only detections of one class from different parts:

- Boxes that are nearly the same (IoU) are one object; the best score is kept.
- A box that ends at an inner edge of its tile may be cut there. It is dropped if it lies inside a
  box that is not cut.
- Other cut boxes that continue each other across a seam are joined into one.

The result depends neither on the order of the parts nor on that of their detections, and merging
it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.detections import Detections
from service.core.tiling.grid import Region

_SAME_IOU = 0.5
_INSIDE_WHOLE = 0.7  # share of a cut box inside a box that is not cut, from which it is dropped
_INSIDE_CUT = 0.9  # likewise, inside another cut box
_SAME_EXTENT = 0.6  # IoU along a seam of boxes that continue each other
_EDGE_SHARE, _EDGE_PIXELS = 0.015, 2.0  # a box that ends so close to an edge of its tile is cut
# A cut box yields to a box that is not cut if that has at least this share of its score.
_CUT_WEIGHT = 0.25
_MAX_CANDIDATES = 512  # the best by score; comparing takes quadratic time

_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


class Part(NamedTuple):
    """The detections in one tile, or in the whole image; boxes in pixels of the image."""

    region: Region
    detections: Detections


class _Candidates(NamedTuple):
    """Detections of all parts."""

    scores: _Floats  # [N]
    labels: _Ints  # [N]
    boxes: _Floats  # [N, 4] xyxy, pixels of the image
    parts: _Ints  # [N], a number for each part; joined boxes have their own
    cut: _Bools  # [N, 4]: at the left, top, right and bottom edge of the tile
    margins: _Floats  # [N, 2] along x and y, within which a box ends at an edge

    def keep(self, chosen: _Bools | _Ints) -> _Candidates:
        """The chosen rows, in order."""
        return _Candidates._make(column[chosen] for column in self)


def shifted(detections: Detections, region: Region) -> Detections:
    """Detections in a tile, in pixels of the image instead of the tile."""
    offset = np.array([region.left, region.top] * 2, np.float32)
    return Detections(detections.scores, detections.labels, detections.boxes_xyxy + offset)


def merge_detections(parts: Sequence[Part], size: tuple[int, int]) -> Detections:
    """Merges the detections of the parts of an image.

    Args:
        parts: tiles with different regions, and the whole image. At most 512 detections are
            compared, those with the best scores.
        size: (height, width) of the image.

    Returns:
        The detections, best score first.
    """
    candidates = _sorted(_collect(parts, size), _MAX_CANDIDATES)
    # Pieces of an object that lies whole elsewhere are dropped first. Of the others none is, before
    # they are joined.
    candidates = _select(candidates, only_by_whole=True)
    merged = _sorted(_select(_join(candidates)))
    return Detections(
        scores=merged.scores.astype(np.float32),
        labels=merged.labels,
        boxes_xyxy=merged.boxes.astype(np.float32),
    )


def _collect(parts: Sequence[Part], size: tuple[int, int]) -> _Candidates:
    height, width = size
    columns: list[_Candidates] = []
    # By region, so that the numbers of the parts do not depend on their order.
    for number, (region, found) in enumerate(sorted(parts, key=lambda part: part.region)):
        boxes = found.boxes_xyxy.astype(np.float64)
        high, wide = region.size
        margin = np.maximum(_EDGE_PIXELS, _EDGE_SHARE * np.array([wide, high]))
        starts, ends = np.array(region[:2]), np.array(region[2:])
        inner = np.concatenate((starts > 0, ends < np.array([width, height])))
        near = np.concatenate((boxes[:, :2] - starts, ends - boxes[:, 2:]), axis=1)
        count = len(found)
        columns.append(
            _Candidates(
                scores=found.scores.astype(np.float64),
                labels=found.labels.astype(np.int64),
                boxes=boxes,
                parts=np.full(count, number),
                cut=(near <= np.tile(margin, 2)) & inner,
                margins=np.broadcast_to(margin, (count, 2)),
            )
        )
    if not columns:
        return _Candidates(
            np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64),
            np.zeros((0, 4), np.bool_), np.zeros((0, 2)),
        )  # fmt: skip
    return _Candidates._make(np.concatenate(column) for column in zip(*columns, strict=True))


def _sorted(candidates: _Candidates, most: int | None = None) -> _Candidates:
    """The best scores first; ties in an order that depends on the detections only."""
    return candidates.keep(_order(candidates, candidates.scores)[:most])


def _sorted_by_weight(candidates: _Candidates) -> _Candidates:
    """As `_sorted`, but boxes that are not cut before cut ones of similar scores."""
    weights = candidates.scores * np.where(candidates.cut.any(axis=1), _CUT_WEIGHT, 1.0)
    return candidates.keep(_order(candidates, weights))


def _order(candidates: _Candidates, keys: _Floats) -> _Ints:
    ties = (candidates.parts, *candidates.boxes.T, candidates.labels, -candidates.scores)
    return np.lexsort((*ties, -keys))


def _select(candidates: _Candidates, *, only_by_whole: bool = False) -> _Candidates:
    """Drops what another part has already found; optionally only in favour of boxes not cut."""
    candidates = _sorted_by_weight(candidates)
    boxes, parts, labels = candidates.boxes, candidates.parts, candidates.labels
    is_cut: _Bools = np.any(candidates.cut, axis=1)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared: _Floats = np.maximum(high - low, 0).prod(axis=2)
    areas: _Floats = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    tiny = np.finfo(np.float64).tiny
    iou = shared / np.maximum(areas[:, None] + areas[None] - shared, tiny)
    inside = shared / np.maximum(areas[None], tiny)  # [i, j]: share of j inside i
    enough = np.where(is_cut[:, None], _INSIDE_CUT, _INSIDE_WHOLE)
    covers = (iou >= _SAME_IOU) | (is_cut[None] & (inside >= enough))
    drops: _Bools = covers & (labels[:, None] == labels[None]) & (parts[:, None] != parts[None])
    if only_by_whole:
        drops &= ~is_cut[:, None]
    kept = np.ones(len(boxes), np.bool_)
    for row in range(len(boxes)):
        if kept[row]:
            kept[row + 1 :] &= ~drops[row, row + 1 :]
    return candidates.keep(kept)


def _join(candidates: _Candidates) -> _Candidates:
    """Replaces cut boxes that continue each other by the box around them."""
    pairs = np.argwhere(_continues(candidates, 0) | _continues(candidates, 1))
    if not len(pairs):
        return candidates
    groups = np.arange(len(candidates.scores))
    for first, second in pairs:
        groups[groups == groups[second]] = groups[first]
    joined = np.zeros(len(groups), np.bool_)
    joined[pairs.ravel()] = True
    boxes = [_joined(candidates.keep(groups == group)) for group in np.unique(groups[joined])]
    rest = candidates.keep(~joined)
    columns = zip(rest, *boxes, strict=True)
    together = _Candidates._make(np.concatenate(column) for column in columns)
    numbers = together.parts.copy()
    numbers[len(rest.scores) :] = candidates.parts.max() + 1 + np.arange(len(boxes))
    return together._replace(parts=numbers)


def _joined(pieces: _Candidates) -> _Candidates:
    """One box around all pieces, with the best of their scores.

    It is cut at a side if all pieces that reach so far are.
    """
    box = np.concatenate((pieces.boxes[:, :2].min(axis=0), pieces.boxes[:, 2:].max(axis=0)))
    return _Candidates(
        scores=pieces.scores.max(keepdims=True),
        labels=pieces.labels[:1],
        boxes=box[None],
        parts=pieces.parts[:1],
        cut=(pieces.cut | (pieces.boxes != box)).all(axis=0, keepdims=True),
        margins=pieces.margins.max(axis=0, keepdims=True),
    )


def _continues(candidates: _Candidates, axis: int) -> _Bools:
    """[i, j]: whether j continues i to the right (axis 0) or downwards (axis 1)."""
    start, end = candidates.boxes[:, axis], candidates.boxes[:, 2 + axis]
    along = 1 - axis
    low, high = candidates.boxes[:, along], candidates.boxes[:, 2 + along]
    shared = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    total = np.maximum(high[:, None], high[None]) - np.minimum(low[:, None], low[None])
    gap = 2 * candidates.margins[:, axis]
    continues: _Bools = (
        candidates.cut[:, None, 2 + axis]
        & candidates.cut[None, :, axis]
        & (candidates.labels[:, None] == candidates.labels[None])
        & (candidates.parts[:, None] != candidates.parts[None])
        & (start[:, None] < start[None])
        & (end[:, None] < end[None])
        & (start[None] <= end[:, None] + gap[:, None])
        & (shared >= _SAME_EXTENT * total)
        & (total > 0)
    )
    return continues
