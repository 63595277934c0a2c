"""The synthetic validation set: the code generator's scenes from a seed that no training uses."""

from __future__ import annotations

import hashlib
from pathlib import Path

import model.training.codes
from model.training.codes.cache import build

SEED = 97_531
NUM_SCENES = 300
MAX_SIDE = 384  # pixels, as the training pictures

_ANNOTATIONS = "annotations.json"


def synthetic_set(cache_dir: Path, num_scenes: int = NUM_SCENES) -> tuple[Path, Path]:
    """Renders the set where the cache does not have it yet.

    Args:
        cache_dir: may keep several sets; each lies in a folder of its own.
        num_scenes: the first scenes of the seed.

    Returns:
        Its COCO-format annotations and its folder of images.
    """
    folder = cache_dir / f"synthetic-codes-{SEED}-{num_scenes}-{_generator_version()}"
    annotations = folder / _ANNOTATIONS
    if not annotations.exists():
        build(folder, num_scenes, SEED, workers=1, max_side=MAX_SIDE)
    return annotations, folder


def _generator_version() -> str:
    """A digest of the generator's sources: other sources draw other scenes."""
    digest = hashlib.sha256()
    for file in sorted(Path(model.training.codes.__path__[0]).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]
