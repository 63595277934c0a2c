"""Editions of the generator are frozen: a scene of a seed never changes.

`python -m tests.model.training.test_editions NUMBER` records a new edition in
`editions/NUMBER.json`. A recorded file is not written again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("zxingcpp", reason="zxing-cpp, which draws the codes, is missing")
cv2 = pytest.importorskip("cv2", reason="OpenCV, which draws the scenes, is missing")

from benchmarks.accuracy.synthetic_set import MAX_SIDE, SEED, set_name  # noqa: E402
from model.training.codes import EDITIONS, Scene, generate_scene  # noqa: E402

_FOLDER = Path(__file__).parent / "editions"
_SCENES = 12
_GRID = 4
# Other versions, and processors without AVX2, round some pixels differently.
_LIBRARIES = ("numpy", "opencv-python-headless", "zxing-cpp", "scikit-image", "scikit-learn")
_CPU_AVX2 = 11  # the number of the feature in OpenCV


def _scenes(edition: int) -> list[Scene]:
    return [
        generate_scene(
            np.random.default_rng([SEED, number]), max_side=MAX_SIDE[edition], edition=edition
        )
        for number in range(_SCENES)
    ]


def _outline(scene: Scene) -> dict[str, Any]:
    """What does not depend on the rounding of single pixels."""
    cells = [
        [part.mean() for part in np.array_split(row, _GRID, axis=1)]
        for row in np.array_split(scene.image, _GRID, axis=0)
    ]
    return {
        "shape": list(scene.image.shape),
        "labels": scene.labels.tolist(),
        "boxes": np.round(scene.boxes_xyxy, 1).tolist(),
        "grey": np.round(cells, 1).tolist(),
    }


def _digest(scenes: list[Scene]) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(scene.image.tobytes() + scene.boxes_xyxy.tobytes())
    return digest.hexdigest()


def _environment() -> dict[str, Any]:
    versions: dict[str, Any] = {name: version(name) for name in _LIBRARIES}
    return versions | {"avx2": bool(cv2.checkHardwareSupport(_CPU_AVX2))}


@pytest.mark.parametrize("edition", sorted(EDITIONS))
def test_a_recorded_edition_gives_the_recorded_scenes(edition: int) -> None:
    recorded = json.loads((_FOLDER / f"{edition}.json").read_text(encoding="utf-8"))
    scenes = _scenes(edition)
    for scene, expected in zip(scenes, recorded["scenes"], strict=True):
        found = _outline(scene)
        assert found["shape"] == expected["shape"]
        assert found["labels"] == expected["labels"]
        np.testing.assert_allclose(
            np.reshape(found["boxes"], (-1, 4)), np.reshape(expected["boxes"], (-1, 4)), atol=0.3
        )
        np.testing.assert_allclose(found["grey"], expected["grey"], atol=1.5)
    if recorded["environment"] == _environment():
        assert _digest(scenes) == recorded["sha256"]


def test_sets_are_named_by_edition_seed_and_number_of_scenes() -> None:
    assert set_name(300, 1) == f"synthetic-codes-edition-1-seed-{SEED}-300"
    assert len({set_name(20, 1), set_name(20, 2), set_name(21, 1)}) == 3


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("max_side", [32, 96])
def test_scenes_can_be_small(edition: int, max_side: int) -> None:
    for number in range(24):
        rng = np.random.default_rng([SEED, number])
        scene = generate_scene(rng, max_side=max_side, edition=edition)
        assert max(scene.image.shape[:2]) <= max_side


def test_an_unknown_edition_is_refused() -> None:
    with pytest.raises(ValueError, match="edition 99"):
        generate_scene(np.random.default_rng(0), edition=99)


def _record(edition: int) -> None:
    scenes = _scenes(edition)
    record = {
        "environment": _environment(),
        "sha256": _digest(scenes),
        "scenes": [_outline(scene) for scene in scenes],
    }
    with (_FOLDER / f"{edition}.json").open("x", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    _record(int(sys.argv[1]))
