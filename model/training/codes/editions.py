"""The editions of the generator: what a scene of a seed looks like is fixed in each of them.

Reports and data sets name the edition, so that their figures can be compared later. A published
edition never changes, to the last pixel; new kinds of scenes belong to a new edition.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model.training.codes import scene
from model.training.codes.edition2 import scene as scene2
from model.training.codes.edition3 import scene as scene3
from model.training.codes.edition4 import scene as scene4
from model.training.codes.edition5 import scene as scene5
from model.training.codes.scene import Scene

Generate = Callable[[np.random.Generator, tuple[int, int] | None, int], Scene]

EDITIONS: dict[int, Generate] = {
    1: scene.generate_scene,
    2: scene2.generate_scene,
    3: scene3.generate_scene,
    4: scene4.generate_scene,
    5: scene5.generate_scene,
}


def generate_scene(
    rng: np.random.Generator,
    size: tuple[int, int] | None = None,
    max_side: int = 384,
    edition: int = 1,
) -> Scene:
    """Generates one annotated image.

    Args:
        rng: Source of randomness; the same state gives the same scene.
        size: Height and width in pixels, or None to draw them.
        max_side: Longest side in pixels where `size` is None.
        edition: Of the generator.

    Returns:
        The scene; about a third have no code.

    Raises:
        ValueError: For an unknown edition.
    """
    if edition not in EDITIONS:
        raise ValueError(f"edition {edition} of the generator is none of {sorted(EDITIONS)}")
    return EDITIONS[edition](rng, size, max_side)
