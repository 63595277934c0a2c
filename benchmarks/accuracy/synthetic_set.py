"""The synthetic validation sets: generated scenes of a seed that training does not use.

A set is fixed by the generator's edition, the seed and the number of scenes; file names and reports
contain the three.
"""

from __future__ import annotations

from pathlib import Path

from model.training.codes.cache import build

SEED = 97_531
NUM_SCENES = 300
EDITION = 1  # of the generator, which the shipped model is scored on
# Pixels, by edition: the longest side of its scenes.
MAX_SIDE = {1: 384, 2: 640, 3: 640, 4: 640, 5: 640}

_ANNOTATIONS = "annotations.json"


def synthetic_set(
    cache_dir: Path, num_scenes: int = NUM_SCENES, edition: int = EDITION, seed: int = SEED
) -> tuple[Path, Path]:
    """Renders the set unless the cache contains it.

    Args:
        cache_dir: contains one folder for each set.
        num_scenes: number of scenes, from the first of the seed.
        edition: of the generator.
        seed: of the scenes; other sets than the validation set have another one.

    Returns:
        Its COCO-format annotations and its folder of images.
    """
    folder = cache_dir / set_name(num_scenes, edition, seed)
    annotations = folder / _ANNOTATIONS
    if not annotations.exists():
        build(folder, num_scenes, seed, 1, MAX_SIDE[edition], edition=edition)
    return annotations, folder


def set_name(num_scenes: int = NUM_SCENES, edition: int = EDITION, seed: int = SEED) -> str:
    """Returns the name of a set, of which its folder and result files are named."""
    return f"synthetic-codes-edition-{edition}-seed-{seed}-{num_scenes}"
