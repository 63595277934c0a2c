"""Published figures of the family: Lite DETR (CVPR 2023), tables 3 and 4 (torch-free)."""

from __future__ import annotations

from typing import Final, NamedTuple


class Published(NamedTuple):
    """Figures of one row: box AP on COCO val2017 in percent, GFLOPs, and millions of parameters.

    GFLOPs are multiply-accumulates, averaged over the first 100 images of val2017.
    """

    ap: float
    gflops: float
    encoder_gflops: float
    parameters: float


PUBLISHED: Final[dict[str, Published]] = {
    "deformable-detr-r50": Published(46.8, 177, 90, 40),
    "lite-deformable-detr-r50-h2l2-2p1x3": Published(45.8, 108, 23, 41),
    "lite-deformable-detr-r50-h3l1-6p1x1": Published(45.9, 115, 30, 41),
    "lite-deformable-detr-r50-h3l1-3p1x2": Published(46.2, 119, 35, 41),
    "lite-deformable-detr-r50-h3l1-2p1x3": Published(46.7, 123, 39, 41),
    "dino-r50-4scale": Published(50.7, 235, 137, 47),
    "lite-dino-r50-h2l2-2p1x3": Published(49.9, 130, 30, 47),
    "lite-dino-r50-h3l1-6p1x1": Published(50.2, 141, 41, 47),
    "lite-dino-r50-h3l1-2p1x3": Published(50.4, 151, 53, 47),
    "dino-swint-4scale": Published(54.1, 243, 137, 47),
    "lite-dino-swint-h2l2-2p1x3": Published(53.1, 138, 30, 47),
    "lite-dino-swint-h3l1-6p1x1": Published(53.3, 149, 41, 47),
    "lite-dino-swint-h3l1-2p1x3": Published(53.9, 159, 53, 47),
    "h-detr-r50": Published(50.0, 226, 137, 47),
    "lite-h-detr-r50-h3l1-2p1x3": Published(49.5, 142, 53, 47),
    "h-detr-swint": Published(53.2, 234, 137, 47),
    "lite-h-detr-swint-h2l2-2p1x3": Published(52.3, 131, 30, 47),
    "lite-h-detr-swint-h3l1-6p1x1": Published(52.7, 142, 41, 47),
    "lite-h-detr-swint-h3l1-2p1x3": Published(53.0, 152, 53, 47),
}
"""Variant -> its published figures; variants that the paper does not list are not in it."""
