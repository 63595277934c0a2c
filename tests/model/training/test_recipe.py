"""Options that follow from the data, and the warnings of a run that cannot learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.training.advice import no_hit, too_short
from model.training.options import TrainOptions
from model.training.recipe import (
    DataFacts,
    choose,
    facts_of,
    input_side,
    is_untrained,
    mirroring_changes_classes,
    num_queries,
)
from model.training.schedule import learning_rate_factor
from model.weights.info import DEFAULT_MODEL_PATH
from tests.model.training.tiny import tiny_options

_FACTS = DataFacts(num_images=200, num_boxes=900, num_classes=3, image_side=640, small_box=0.05)


def _truth(*sides: float, category: int = 1) -> GroundTruth:
    boxes = tuple(AnnotatedBox(category, (0, 0, side, 2 * side), 0) for side in sides)
    return GroundTruth((ImageAnnotations(7, "a.png", boxes),), {category: "a"})


def test_facts_measure_small_boxes_relative_to_the_image() -> None:
    facts = facts_of(_truth(*[32.0] * 20), {7: (640, 480)})
    assert (facts.num_images, facts.num_boxes, facts.image_side) == (1, 20, 640)
    assert facts.small_box == pytest.approx(0.05)


def test_small_boxes_of_one_class_decide_the_size() -> None:
    large, small = _truth(*[200.0] * 90), _truth(*[12.0] * 10, category=2)
    both = ImageAnnotations(7, "a.png", large.images[0].boxes + small.images[0].boxes)
    facts = facts_of(GroundTruth((both,), {1: "a", 2: "b"}), {7: (640, 480)})
    assert facts.small_box == pytest.approx(12 / 640)


@pytest.mark.parametrize(("small_box", "side"), [(0.5, 320), (0.035, 416), (0.001, 640)])
def test_input_side_follows_small_boxes_within_bounds(small_box: float, side: int) -> None:
    facts = DataFacts(10, 10, 1, 1000, small_box)
    assert input_side(facts, is_long=False) == side
    assert side % 32 == 0


def test_a_long_run_gets_a_larger_input() -> None:
    facts = DataFacts(10, 10, 1, 1000, 0.044)
    short = (TrainOptions(max_minutes=9), TrainOptions(max_iterations=499))
    assert [choose(options, facts)[0].input_side for options in short] == [320, 320]
    for options in (
        TrainOptions(),
        TrainOptions(max_minutes=10),
        TrainOptions(max_iterations=500),
    ):
        chosen, _ = choose(options, facts)
        assert (chosen.input_side, chosen.sizes) == (480, (448, 480, 512))


@pytest.mark.parametrize(("crowd", "queries"), [(1, 100), (8, 100), (12, 150), (90, 300)])
def test_crowded_images_get_more_queries(crowd: float, queries: int) -> None:
    facts = DataFacts(10, 10, 1, 1000, 0.1, crowd)
    assert num_queries(facts, 100) == queries
    assert num_queries(facts, 900) == 900


def test_given_options_are_kept_and_others_chosen_with_reasons() -> None:
    given = TrainOptions(symmetries="dihedral", learning_rate=1e-3)
    options, choices = choose(given, _FACTS)
    assert (options.symmetries, options.learning_rate) == ("dihedral", 1e-3)
    assert options.init_from == DEFAULT_MODEL_PATH
    assert options.input_side == 416
    assert {"symmetries", "learning_rate"}.isdisjoint(choice.name for choice in choices)
    assert all(choice.reason and choice.shown for choice in choices)


@pytest.mark.parametrize("facts", [_FACTS, None], ids=["own data", "generated"])
def test_random_weights_are_not_frozen(facts: DataFacts | None) -> None:
    variant = "lite-dino-r50-h3l1-2p1x3"
    options, choices = choose(TrainOptions(variant=variant), facts)
    assert options.init_from is None and is_untrained(options)
    assert (options.freeze_backbone_stages, options.backbone_lr_factor) == (0, 1)
    assert not any("trained weights" in choice.reason for choice in choices)
    assert {"freeze_backbone_stages", "backbone_lr_factor"} <= {choice.name for choice in choices}


def test_a_trained_backbone_is_frozen_in_part_and_the_rest_learns_from_the_start() -> None:
    options, choices = choose(TrainOptions(pretrained_backbone="any"), _FACTS)
    assert not is_untrained(options) and options.init_from is None
    assert options.freeze_backbone_stages == 2
    assert "learning_rate" not in {choice.name for choice in choices}


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        (("turn_left", "turn_right"), True),
        (("Lane East", "lane west"), True),
        (("0", "1", "7"), True),
        (("A", "b"), True),
        (("left_arrow", "car"), False),  # its mirror image is no other class
        (("rbc", "wbc", "x"), False),
    ],
)
def test_classes_that_mirroring_exchanges_are_not_mirrored(
    names: tuple[str, ...], changes: bool
) -> None:
    assert mirroring_changes_classes(names) == changes
    options, _ = choose(TrainOptions(), replace(_FACTS, names=names))
    assert options.symmetries == ("none" if changes else "hflip")


def test_several_processes_need_fewer_steps_for_the_same_epochs() -> None:
    facts = replace(_FACTS, num_images=8000)
    counts = [choose(TrainOptions(), facts, n)[0].max_iterations for n in (1, 4)]
    assert counts == [20_000, 15_000]
    reasons = [c.reason for c in choose(TrainOptions(), facts)[1] if c.name == "max_iterations"]
    assert reasons[0].startswith("20 epochs")


def test_length_follows_from_the_data_unless_it_is_given() -> None:
    assert choose(TrainOptions(), _FACTS)[0].max_iterations >= 1000
    assert choose(TrainOptions(max_iterations=50), _FACTS)[0].max_iterations == 50
    by_time = choose(TrainOptions(max_minutes=5), _FACTS)[0]
    assert by_time.max_iterations > 10_000


def test_warm_up_of_a_short_run_is_a_share_of_it() -> None:
    options = tiny_options(Path("unused"), warmup_iterations=200, warmup_share=0.05)
    early = learning_rate_factor(options, 1, 0.01)
    late = learning_rate_factor(options, 8, 0.06)
    assert early < 0.25
    assert late > 0.95
    long_run = learning_rate_factor(options, 199, 0.001)
    assert long_run == pytest.approx(1.0, abs=0.01)


def test_short_run_and_classes_without_a_hit_are_named() -> None:
    assert too_short(1000, 1.0) is None
    assert "40 iterations" in (too_short(40, 2.0) or "")
    assert no_hit([], 5000, 1.0) is None
    assert no_hit(["a"], 20, 0.1) is None
    assert "found of: a, b" in (no_hit(["a", "b"], 400, 0.1) or "")
