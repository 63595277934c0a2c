"""Counts of multiply-accumulates."""

from __future__ import annotations

import pytest

from benchmarks.paper.complexity import PUBLISHED, baseline_of
from model import VARIANTS
from model.network.complexity import COCO_SIZE, count
from tests.model.network.test_detector import tiny


def test_a_small_network_is_counted_by_hand() -> None:
    config = tiny(key_aware=False, interleaved=False, encoder_layers=1, decoder_layers=1)
    config = type(config)(**{**config.to_dict(), "encoder_blocks": 1})
    found = count(config, [(64, 128)])
    tokens, d, queries = 128 + 32 + 8 + 2, 32, 12
    heads, levels, points = 2, 4, 4
    samples = heads * levels * points
    # Value and output projection, offsets, weights, FFN of 32, and 4 products a sample.
    per_token = 2 * d * d + d * samples * 2 + d * samples + 2 * d * 32 + 4 * samples * (d // heads)
    assert found.parts["encoder"] * 1e9 == pytest.approx(tokens * per_token)
    decoder = queries * (2 * d * d + d * d)  # position of the queries
    decoder += queries * (4 * d * d) + 2 * queries * queries * d  # self-attention
    decoder += tokens * d * d + queries * (d * d + 3 * d * samples + 4 * samples * (d // heads))
    decoder += queries * 2 * d * 32
    assert found.parts["decoder"] * 1e9 == pytest.approx(decoder)
    assert found.total == pytest.approx(sum(found.parts.values()))
    assert found.head == pytest.approx(found.total - found.parts["backbone"])


@pytest.mark.slow
def test_several_sizes_are_averaged() -> None:
    config = tiny()
    one, other = count(config, [(64, 192)]), count(config, [(64, 128)])
    both = count(config, [(64, 192), (64, 128)])
    assert both.total == pytest.approx((one.total + other.total) / 2)
    assert both.parameters == one.parameters


@pytest.mark.parametrize("sizes", [[], [(0, 64)]])
def test_impossible_sizes_are_refused(sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="sizes of images"):
        count(tiny(), sizes)


def _within(percent: float, found: float, published: float) -> bool:
    return abs(found / published - 1) <= percent / 100


@pytest.mark.parametrize(
    "name",
    [
        "lite-dino-r50-h3l1-2p1x3",
        "dino-swint-4scale",
        pytest.param("lite-dino-r50-h2l2-2p1x3", marks=pytest.mark.slow),
        pytest.param("lite-dino-r50-h3l1-6p1x1", marks=pytest.mark.slow),
        pytest.param("h-detr-r50", marks=pytest.mark.slow),
        pytest.param("lite-h-detr-swint-h3l1-2p1x3", marks=pytest.mark.slow),
        "deformable-detr-r50",
    ],
)
def test_totals_are_the_published_ones_within_5_percent(name: str) -> None:
    found = count(VARIANTS[name], [COCO_SIZE])
    assert _within(5, found.total, PUBLISHED[name].total)
    assert _within(5, found.parameters, PUBLISHED[name].parameters)


def test_each_row_has_its_baseline() -> None:
    assert PUBLISHED.keys() <= VARIANTS.keys()
    assert baseline_of("lite-h-detr-swint-h3l1-2p1x3") == "h-detr-swint"
    assert baseline_of("lite-dino-r50-h2l2-2p1x3") == "dino-r50-4scale"
    assert baseline_of("lite-deformable-detr-r50-h3l1-3p1x2") == "deformable-detr-r50"
