"""Edition 5 of the generator: rows of thin outlines."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("zxingcpp", reason="zxing-cpp, which draws the codes, is missing")
pytest.importorskip("cv2", reason="OpenCV, which draws the scenes, is missing")

from model.training.codes import generate_scene
from model.training.codes.edition5 import scene as edition5
from model.training.codes.edition5.outlines import outlines, outlines_view


@pytest.mark.parametrize("seed", range(8))
def test_rows_fill_any_size_with_lines(seed: int) -> None:
    for draw in (outlines, outlines_view):
        image = draw(np.random.default_rng(seed), 200, 130)
        assert image.shape == (130, 200, 3)
        assert image.dtype == np.uint8
        grey = image.mean(axis=-1)
        assert grey.std() > 8
        assert max(np.abs(np.diff(grey, axis=axis)).max() for axis in (0, 1)) > 25


def test_few_of_the_rows_have_a_code_and_its_box_is_in_the_image() -> None:
    drafts = [
        edition5._outlines_scene(np.random.default_rng([3, seed]), (120, 160)) for seed in range(30)
    ]
    assert 2 <= sum(bool(draft.boxes) for draft in drafts) <= 18
    for draft in drafts:
        for left, top, right, bottom in draft.boxes:
            assert 0 <= left < right <= 160
            assert 0 <= top < bottom <= 120


def test_most_scenes_are_those_of_edition_4(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    make = edition5._outlines_scene

    def recorded(rng: np.random.Generator, size: tuple[int, int]) -> object:
        sizes.append(size)
        return make(rng, size)

    monkeypatch.setattr(edition5, "_outlines_scene", recorded)
    for seed in range(40):
        generate_scene(np.random.default_rng([1, seed]), (60, 80), edition=5)
    assert 1 <= len(sizes) <= 14
    assert set(sizes) == {(60, 80)}
