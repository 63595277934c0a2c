"""Published figures of the family, and the sizes of the images that they are from (torch-free).

Lite DETR (CVPR 2023), tables 3 and 4.
"""

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

PUBLISHED_AP: Final[dict[str, float]] = {
    **{name: row.ap for name, row in PUBLISHED.items()},
    "deformable-detr-r50-ffn2048": 46.8,  # of H-DETR's authors, with their release
}
"""Variant -> its published box AP on COCO val2017, in percent."""

FIRST_COCO_SIZES: Final[dict[tuple[int, int], int]] = {
    (240, 320): 2, (302, 500): 1, (315, 640): 1, (333, 500): 1, (349, 640): 1, (351, 640): 1,
    (359, 640): 1, (361, 640): 3, (363, 640): 1, (366, 640): 1, (375, 500): 5, (384, 640): 1,
    (396, 500): 1, (400, 600): 2, (419, 640): 1, (425, 640): 6, (426, 640): 4, (427, 640): 14,
    (428, 640): 1, (459, 640): 1, (480, 640): 17, (482, 640): 1, (483, 640): 1, (500, 333): 1,
    (500, 375): 4, (512, 640): 1, (531, 640): 1, (539, 640): 1, (555, 640): 1, (612, 612): 4,
    (640, 424): 1, (640, 425): 1, (640, 427): 3, (640, 428): 1, (640, 429): 1, (640, 443): 1,
    (640, 444): 1, (640, 457): 1, (640, 478): 1, (640, 480): 2, (640, 550): 1, (640, 551): 1,
    (640, 586): 1, (640, 621): 1, (640, 638): 1, (640, 640): 1,
}  # fmt: skip
"""(H, W) in pixels -> how many of the first 100 images of COCO val2017, by id, have this size."""
