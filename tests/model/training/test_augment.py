"""Augmentation keeps boxes on their objects."""

from __future__ import annotations

import numpy as np
import pytest

from model.training import augment as augment_module
from model.training.augment import (
    AugmentRule,
    augment,
    crop,
    fit,
    mirror_and_rotate,
    mosaic,
    recolour,
)
from model.training.sources import AnnotatedImage, Boxes, Pixels

_STRONG = AugmentRule("dihedral", 0.7, 0.0, 0.0, 0.0)


def _image(height: int = 60, width: int = 90) -> AnnotatedImage:
    """Black with one white rectangle, which the box covers exactly."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[12:32, 40:70] = 255
    box = np.array([[40, 12, 70, 32]], np.float32)
    return AnnotatedImage(pixels, box, np.array([1], np.int64))


def _white(pixels: Pixels) -> Boxes:
    rows, columns = np.nonzero(pixels[..., 0] > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_box_follows_its_object_through_every_symmetry(seed: int) -> None:
    rotated = mirror_and_rotate(_image(), "dihedral", np.random.default_rng(seed))
    np.testing.assert_array_equal(rotated.boxes[0], _white(rotated.pixels))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("with_cv2", [True, False])
def test_box_follows_its_object_through_everything(
    seed: int, with_cv2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_module, "_HAS_CV2", with_cv2 and augment_module._HAS_CV2)
    changed = augment(_image(), (96, 128), _STRONG, np.random.default_rng(seed))
    assert changed.pixels.shape[0] <= 96
    assert changed.pixels.shape[1] <= 128
    if len(changed.boxes):
        np.testing.assert_allclose(changed.boxes[0], _white(changed.pixels), atol=4)


def test_hflip_never_rotates_an_image() -> None:
    shapes = {
        mirror_and_rotate(_image(), "hflip", np.random.default_rng(s)).pixels.shape
        for s in range(9)
    }
    assert shapes == {(60, 90, 3)}


def test_same_generator_gives_the_same_image() -> None:
    rule = AugmentRule("dihedral", 0.5, 1.0, 0.5, 0.5)
    first, second = (augment(_image(), (64, 64), rule, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first.pixels, second.pixels)


def test_clean_crop_cuts_no_box() -> None:
    for seed in range(20):
        cut = crop(_image(), 1.0, (0.4, 0.8), np.random.default_rng(seed), clean=True)
        if cut is not None and len(cut.boxes):
            extent = cut.boxes[0, 2:] - cut.boxes[0, :2]
            assert float(extent.prod()) >= 0.9 * 30 * 20


def test_box_that_shrinks_to_nothing_is_dropped() -> None:
    assert len(fit(_image(), (4, 4)).boxes) == 0


def test_mosaic_keeps_all_four_objects_in_place() -> None:
    combined = mosaic([_image()] * 4, (128, 160), np.random.default_rng(0))
    assert combined.pixels.shape == (128, 160, 3)
    assert combined.labels.tolist() == [1] * 4
    for left, top, right, bottom in combined.boxes.round().astype(int).tolist():
        assert combined.pixels[top + 1 : bottom - 1, left + 1 : right - 1].mean() > 240


def test_inversion_is_exact_and_grey_has_equal_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    inverted = recolour(pixels, AugmentRule("none", 0, 0, 1.0, 0), np.random.default_rng(0))
    np.testing.assert_array_equal(inverted, 255 - pixels)
    grey = recolour(pixels, AugmentRule("none", 0, 0, 0, 1.0), np.random.default_rng(0))
    assert bool((grey == grey[..., :1]).all())
