"""Counts of multiply-accumulates."""

from __future__ import annotations

import pytest

from benchmarks.paper.complexity import baseline_of, explanation, updated_only
from model import VARIANTS
from model.network.complexity import count
from model.published import FIRST_COCO_SIZES, PUBLISHED
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


SIZE = (850, 1040)  # the official approximation of the first 100 images of COCO val2017


_FAST = "lite-dino-r50-h3l1-2p1x3"
_SLOW = ("h-detr-swint", "deformable-detr-r50")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[]
            if name == _FAST
            else [pytest.mark.slow, *[pytest.mark.family] * (name not in _SLOW)],
        )
        for name in PUBLISHED
    ],
)
def test_counts_are_the_published_ones_within_5_percent_or_explained(name: str) -> None:
    found, published = count(VARIANTS[name], [SIZE]), PUBLISHED[name]
    total, encoder = updated_only(found)
    by_either = [
        _within(5, found.total, published.gflops) or _within(5, total, published.gflops),
        _within(5, found.parts["encoder"], published.encoder_gflops)
        or _within(5, encoder, published.encoder_gflops),
    ]
    assert all(by_either) == (explanation(name, found) == "")
    assert all(by_either) or name.startswith("lite-deformable-detr")
    assert _within(5.1, found.parameters, published.parameters)


def test_terms_of_the_encoder_are_counted_by_hand() -> None:
    config = tiny()
    found = count(config, [(64, 128)])
    low, d = 128, config.d_model  # tokens of the one low level
    blocks = config.encoder_blocks
    reading = config.encoder_layers - blocks  # layers that update no low-level token
    assert config.high_level_scales == config.num_feature_levels - 1
    assert found.read_only_values * 1e9 == pytest.approx(reading * low * d * d)
    assert found.narrow_ffn * 1e9 == pytest.approx(blocks * low * 2 * d * d)
    assert 0 < found.samples["encoder"] < found.parts["encoder"]
    assert found.samples["backbone"] == 0


def test_an_image_costs_as_much_as_its_transpose() -> None:
    config = tiny()
    assert count(config, [(64, 128)]) == count(config, [(128, 64)])


def test_the_published_sizes_are_100_images() -> None:
    assert sum(FIRST_COCO_SIZES.values()) == 100
    assert all(max(size) <= 640 for size in FIRST_COCO_SIZES)


def test_each_row_has_its_baseline() -> None:
    assert PUBLISHED.keys() <= VARIANTS.keys()
    assert baseline_of("lite-h-detr-swint-h3l1-2p1x3") == "h-detr-swint"
    assert baseline_of("lite-dino-r50-h2l2-2p1x3") == "dino-r50-4scale"
    assert baseline_of("lite-deformable-detr-r50-h3l1-3p1x2") == "deformable-detr-r50"
