"""The synthetic validation set: generated scenes of a seed that training does not use."""

from __future__ import annotations

import hashlib
from pathlib import Path

import model.training.codes
from model.training.codes.cache import build

SEED = 97_531
NUM_SCENES = 300
MAX_SIDE = 384  # pixels, as in training

_ANNOTATIONS = "annotations.json"


def synthetic_set(cache_dir: Path, num_scenes: int = NUM_SCENES) -> tuple[Path, Path]:
    """Renders the set unless the cache contains it.

    Args:
        cache_dir: contains one folder for each set.
        num_scenes: number of scenes, from the first of the seed.

    Returns:
        Its COCO-format annotations and its folder of images.
    """
    folder = cache_dir / f"synthetic-codes-{SEED}-{num_scenes}-{_generator_version()}"
    annotations = folder / _ANNOTATIONS
    if not annotations.exists():
        build(folder, num_scenes, SEED, workers=1, max_side=MAX_SIDE)
    return annotations, folder


def _generator_version() -> str:
    """A digest of the generator's sources: changed sources render other scenes."""
    digest = hashlib.sha256()
    for file in sorted(Path(model.training.codes.__path__[0]).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]
