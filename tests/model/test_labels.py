from __future__ import annotations

from model.labels import COCO_LABELS, CODE_LABELS


def test_coco_has_80_names_at_91_ids() -> None:
    assert len(COCO_LABELS) == 91
    names = [label for label in COCO_LABELS if label != "N/A"]
    assert len(names) == len(set(names)) == 80


def test_coco_ids_without_a_class_are_the_published_gaps() -> None:
    gaps = [index for index, label in enumerate(COCO_LABELS) if label == "N/A"]
    assert gaps == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


def test_coco_names_stand_at_their_category_ids() -> None:
    known = {1: "person", 3: "car", 13: "stop sign", 44: "bottle", 62: "chair", 90: "toothbrush"}
    assert {index: COCO_LABELS[index] for index in known} == known


def test_codes_are_five_classes() -> None:
    assert CODE_LABELS == ("qr_code", "data_matrix", "aztec", "pdf417", "linear")
