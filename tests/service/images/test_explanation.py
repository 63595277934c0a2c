"""The figure of an explanation: sizes, colours at the points, and odd images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from model.explanation import Explanation, SampledPoints
from service.images.drawing import CLASS_COLOURS
from service.images.explanation import draw_explanation

SIZE = (1504, 1202)
LEFT, PANEL, TOP = 16, 480, 62 + 54


def points(stage: str, *, key_aware: bool = True) -> SampledPoints:
    """One point of level 2 at (150, 60) has nearly all weight; the others are at (50, 40)."""
    xy = np.full((1, 4, 2, 2), (50.0, 40.0))
    xy[0, 2, 1] = (150.0, 60.0)
    weights = np.full((1, 4, 2), 0.01)
    weights[0, 2, 1] = 0.93
    reference = (100.0, 50.0) if stage == "encoder" else (80.0, 30.0, 120.0, 70.0)
    return SampledPoints(stage, 3, 6, key_aware, reference, xy, weights)  # type: ignore[arg-type]


def explanation(**changes: object) -> Explanation:
    whole = Explanation(
        "cat",
        0.75,
        (80.0, 30.0, 120.0, 70.0),
        7,
        1,
        (8, 16, 32, 64),
        points("decoder"),
        points("encoder"),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def colour(level: int) -> tuple[int, int, int]:
    text = CLASS_COLOURS[level]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def near(figure: Image.Image, place: tuple[float, float], expected: tuple[int, int, int]) -> bool:
    pixel = figure.getpixel((round(place[0]), round(place[1])))
    assert isinstance(pixel, tuple)
    return all(abs(one - other) <= 40 for one, other in zip(pixel, expected, strict=True))


@pytest.mark.parametrize("row", [0, 1])
def test_the_heaviest_point_is_at_its_place_in_the_colour_of_its_level(row: int) -> None:
    figure = draw_explanation(Image.new("RGB", (200, 100), "black"), explanation())
    assert figure.size == SIZE
    scale = PANEL / 200
    x = LEFT + 150 * scale
    y = TOP + row * (54 + 480 + 16) + (60 + 50) * scale  # the image is centred in a square
    assert near(figure, (x, y), colour(2))
    assert not near(figure, (x, y - 30), colour(2))


def test_weights_change_the_panels_and_not_their_points() -> None:
    image = Image.new("RGB", (200, 100), "black")
    equal = np.full((1, 4, 2), 0.125)
    before = np.asarray(draw_explanation(image, explanation()))
    decoder = replace(points("decoder"), weights=equal)
    after = np.asarray(draw_explanation(image, explanation(decoder=decoder)))
    keyed = slice(LEFT + 2 * 496, LEFT + 2 * 496 + PANEL)
    assert (before[TOP : TOP + PANEL, keyed] != after[TOP : TOP + PANEL, keyed]).any()
    second_row = slice(TOP + 550, TOP + 550 + PANEL)
    assert (before[second_row] == after[second_row]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (40, 40)])
@pytest.mark.parametrize("key_aware", [True, False])
def test_any_image_can_be_drawn(size: tuple[int, int], key_aware: bool) -> None:
    stages = (points("decoder", key_aware=key_aware), points("encoder", key_aware=key_aware))
    empty = explanation(box_xyxy=(3.0, 4.0, 3.0, 4.0), decoder=stages[0], encoder=stages[1])
    assert draw_explanation(Image.new("RGB", size, "teal"), empty).size == SIZE


def test_points_far_outside_and_names_in_any_script_are_drawn() -> None:
    far = points("decoder")
    far.xy[...] = -1e6
    named = explanation(decoder=far, label="犬 \U0001f415 собака" * 20)
    assert draw_explanation(Image.new("RGB", (64, 64)), named).size == SIZE
