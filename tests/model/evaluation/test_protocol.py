"""Which models are compared with a published AP, and on which images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.config import VARIANTS
from model.data.annotations import GroundTruth, ImageAnnotations
from model.evaluation.protocol import describe_protocol, is_val2017, published_ap
from model.labels import COCO_LABELS, CODE_LABELS
from model.published import PUBLISHED_AP


def test_every_row_of_the_paper_has_its_ap() -> None:
    for name, ap in PUBLISHED_AP.items():
        assert published_ap(VARIANTS[name], COCO_LABELS) == ap
        assert 45 < ap < 55


def test_other_models_have_no_published_ap() -> None:
    row = VARIANTS["lite-dino-r50-h3l1-2p1x3"]
    assert published_ap(replace(row, num_queries=300), COCO_LABELS) is None
    assert published_ap(row, ("cat",) * 91) is None
    assert published_ap(VARIANTS["lite-dino-r50-h3l1-3p1x2"], COCO_LABELS) is None
    assert published_ap(VARIANTS["lite-dino-efficientnet-lite0"], CODE_LABELS) is None
    assert published_ap(replace(row, name="mine"), COCO_LABELS) is None


def test_5000_other_images_are_not_val2017() -> None:
    images = tuple(ImageAnnotations(number, "", ()) for number in range(5000))
    assert not is_val2017(GroundTruth(images, {}))
    assert not is_val2017(GroundTruth(images[:100], {}))


@pytest.mark.parametrize(
    ("iou", "words"),
    [(1.0, "no duplicate removal"), (0.7, "an IoU above 0.7 only the best")],
)
def test_the_rule_for_duplicates_is_that_of_the_model(iou: float, words: str) -> None:
    config = replace(VARIANTS["h-detr-r50"], duplicate_iou=iou)
    text = describe_protocol(config)
    assert words in text
    assert "shortest side 800, longest at most 1333 pixels" in text
    assert "the 100 best detections of an image" in text
