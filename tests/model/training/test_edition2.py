"""Edition 2 of the generator: small codes, several codes, patterns without codes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("zxingcpp", reason="zxing-cpp, which draws the codes, is missing")
pytest.importorskip("cv2", reason="OpenCV, which draws the scenes, is missing")

from model.training.codes import Scene, generate_scene
from model.training.codes.edition2 import objects
from model.training.codes.edition2.prints import PRINTS
from model.training.codes.edition2.structures import STRUCTURES
from model.training.codes.edition2.surroundings import view
from model.training.codes.edition2.textures import TEXTURES

_MAKERS = {maker.__name__: maker for maker, _ in (*TEXTURES, *STRUCTURES, *PRINTS)}
_INPUT_SIDE = 448  # pixels, longest side at the network's input


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [
        generate_scene(np.random.default_rng([12, number]), max_side=448, edition=2)
        for number in range(45)
    ]


def _sides(scenes: list[Scene]) -> np.ndarray:
    """Geometric mean of the sides of each box at the network's input, in pixels."""
    sides = []
    for scene in scenes:
        scale = _INPUT_SIDE / max(scene.image.shape[:2])
        sides += [float(np.prod(box[2:] - box[:2])) ** 0.5 * scale for box in scene.boxes_xyxy]
    return np.array(sides)


def test_boxes_are_inside_and_not_empty(scenes: list[Scene]) -> None:
    for scene in scenes:
        height, width = scene.image.shape[:2]
        assert max(height, width) <= 448
        assert len(scene.labels) == len(scene.boxes_xyxy) == len(scene.payloads)
        assert (scene.boxes_xyxy >= 0).all()
        assert (scene.boxes_xyxy <= [width, height, width, height]).all()
        assert (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2] >= 4).all()


def test_many_codes_are_small_and_many_images_have_several_kinds_or_none(
    scenes: list[Scene],
) -> None:
    assert (_sides(scenes) < 32).mean() > 0.15
    assert sum(len(set(scene.labels.tolist())) > 1 for scene in scenes) >= 5
    assert 0.2 < sum(not len(scene.labels) for scene in scenes) / len(scenes) < 0.5


@pytest.mark.parametrize("name", sorted(_MAKERS))
def test_a_pattern_fills_any_size_and_is_not_flat(name: str) -> None:
    for number, (width, height) in enumerate(((16, 16), (150, 20), (24, 130), (160, 120))):
        image = _MAKERS[name](np.random.default_rng([3, number]), width, height)
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
    assert image.std() > 1


def test_a_view_has_the_given_size_at_any_angle() -> None:
    for seed in range(12):
        assert view(np.random.default_rng(seed), 90, 50).shape == (50, 90, 3)


def test_codes_of_an_object_do_not_overlap_and_keep_their_modules_visible() -> None:
    for seed in range(8):
        sheet = objects.carrier(np.random.default_rng(seed), 4, (15, 60), 2.0)
        assert sheet.marks
        high, wide = sheet.colour.shape[:2]
        for number, mark in enumerate(sheet.marks):
            left, top, right, bottom = mark.box
            assert 0 <= left < right <= wide
            assert 0 <= top < bottom <= high
            assert mark.cell > objects.MIN_CELL - 0.15  # whole pixels
            for other in sheet.marks[:number]:
                assert (
                    left >= other.box[2]
                    or right <= other.box[0]
                    or top >= other.box[3]
                    or bottom <= other.box[1]
                )
