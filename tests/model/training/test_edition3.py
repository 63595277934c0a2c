"""Edition 3 of the generator: add-ons of retail codes, and rows of labels of one design."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("zxingcpp", reason="zxing-cpp, which draws the codes, is missing")
pytest.importorskip("cv2", reason="OpenCV, which draws the scenes, is missing")

from model.training.codes import generate_scene
from model.training.codes.drafts import Draft
from model.training.codes.edition3 import scene as edition3
from model.training.codes.edition3.addons import symbol_with_addon
from model.training.codes.edition3.rows import row_of_labels
from model.training.codes.labels import Layout, make_label
from model.training.codes.symbols import LINEAR

_NO_QUIET_ZONE = (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(6))
def test_the_box_of_a_code_leaves_its_addon_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    symbol = symbol_with_addon(rng)
    assert symbol.kind in {"EAN13", "UPCA", "UPCE"} and symbol.addon is not None
    sheet = make_label(rng, symbol, 3.0, Layout(_NO_QUIET_ZONE, extras=False, crisp=True))
    (mark,) = sheet.marks
    left, top, right, bottom = (round(side) for side in mark.box)
    assert right - left == 3 * symbol.bits.shape[1]
    middle = sheet.colour[(top + bottom) // 2].mean(axis=-1)
    paper = middle[right + 3]
    gap = np.abs(middle[right:] - paper) > 60
    assert 7 * 3 - 1 <= gap.argmax() <= 12 * 3 + 1  # modules of three pixels
    printed = np.flatnonzero(gap)
    assert printed[-1] - printed[0] + 1 == pytest.approx(3 * symbol.addon.bits.shape[1], abs=3)


def test_labels_in_a_row_have_one_class_and_mostly_one_size() -> None:
    equal = 0
    for seed in range(12):
        sheet = row_of_labels(np.random.default_rng(seed), 400)
        assert len(sheet.marks) >= 2
        assert len({mark.label for mark in sheet.marks}) == 1
        sides = [(m.box[2] - m.box[0], m.box[3] - m.box[1]) for m in sheet.marks]
        equal += len(set(sides)) == 1
        draft = Draft(np.zeros((8, 8, 3), np.uint8))
        for mark in sheet.marks:
            box = np.array(mark.box, np.float32)
            assert draft.free(box)
            draft.taken.append(box)
    assert equal >= 6


def test_both_kinds_of_scenes_have_codes() -> None:
    addons, rows = [], []
    for seed in range(8):
        rng = np.random.default_rng([7, seed])
        addons.append(edition3._addon_scene(rng, (240, 320)))
        rows.append(edition3._row_scene(rng, (240, 320)))
    assert sum(len(draft.marks) == 1 for draft in addons) >= 5
    assert {mark.label for draft in addons for mark in draft.marks} == {LINEAR}
    assert sum(len(draft.marks) >= 2 for draft in rows) >= 4


def test_boxes_are_inside_and_not_empty() -> None:
    scenes = [
        generate_scene(np.random.default_rng([12, number]), max_side=320, edition=3)
        for number in range(30)
    ]
    for scene in scenes:
        height, width = scene.image.shape[:2]
        assert max(height, width) <= 320
        assert (scene.boxes_xyxy >= 0).all()
        assert (scene.boxes_xyxy <= [width, height, width, height]).all()
        assert (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2] >= 4).all()
    assert sum(not len(scene.labels) for scene in scenes) < len(scenes) / 2
