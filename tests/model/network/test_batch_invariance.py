"""An image has the same result alone and in any batch, to the bit on a CPU.

The full run (500 batches of each model) is `python -m benchmarks.serving.batch_invariance`.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.serving.batch_invariance import (
    Comparison,
    ResizedImage,
    as_served,
    compare,
    default_predictor,
    random_r50,
)


def _assert_held(row: Comparison) -> None:
    assert row.detections > 20
    assert (row.without_match, row.beyond_bound) == (0, 0)
    assert row.images_bitwise_equal == row.images


@pytest.mark.parametrize(
    ("batches", "pool_size"), [(2, 6), pytest.param(12, 24, marks=pytest.mark.slow)]
)
def test_the_default_model_has_the_same_result_alone_and_in_any_batch(
    batches: int, pool_size: int
) -> None:
    predictor = default_predictor("cpu")
    served, _ = compare(predictor, "default", batches, whole_batches=0, pool_size=pool_size)
    _assert_held(served)


@pytest.mark.slow
def test_the_full_network_has_the_same_result_alone_and_in_any_batch() -> None:
    served, _ = compare(random_r50("cpu"), "R50", 3, whole_batches=0, pool_size=8)
    _assert_held(served)


def test_a_neighbour_full_of_noise_or_of_another_size_changes_nothing() -> None:
    predictor = default_predictor("cpu")
    run = as_served(predictor)
    rng = np.random.default_rng(5)
    photo = ResizedImage(rng.integers(0, 256, (320, 440, 3), dtype=np.uint8), (640, 880))
    (alone,) = run([photo], (384, 448))
    for size, low, high in (((384, 448), 0, 256), ((1, 1), 0, 1), ((350, 2), 255, 256)):
        neighbour = ResizedImage(rng.integers(low, high, (*size, 3), dtype=np.uint8), size)
        for batch, place in (([photo, neighbour], 0), ([neighbour, neighbour, photo], 2)):
            found = run(batch, (384, 448))[place]
            np.testing.assert_array_equal(found.scores, alone.scores)
            np.testing.assert_array_equal(found.boxes_xyxy, alone.boxes_xyxy)
