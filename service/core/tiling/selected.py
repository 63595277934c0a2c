"""Merges what a request selects of the parts of an image; for the service and offline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from model.detections import Detections
from service.core.selection import Selection
from service.core.tiling.grid import Region
from service.core.tiling.merge import Part, merge_detections, shifted


def merge_selected(
    selection: Selection,
    most: int,
    whole: Detections,
    tiles: Iterable[tuple[Region, Detections]],
    size: tuple[int, int],
) -> Detections:
    """Merges the detections of an image's parts.

    The threshold and the classes are applied before, so that a box which is not returned cannot
    replace one that is. The number of detections is not limited yet.

    Args:
        selection: of the request.
        most: maximum number of detections in one part.
        whole: detections in the whole image.
        tiles: regions and the detections in them, in pixels of the region.
        size: (height, width) of the image.
    """
    select = replace(selection, max_detections=most).apply
    height, width = size
    found = [(Region(0, 0, width, height), whole), *tiles]
    parts = [Part(region, shifted(select(detections), region)) for region, detections in found]
    return merge_detections(parts, size)
