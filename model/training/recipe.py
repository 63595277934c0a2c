"""Options of a run that follow from the data: size, start, schedule, augmentation.

Only options that the user has not given are chosen. Each choice is a `Choice` with its reason,
which the run prints. Measurements: benchmarks/results/training/fine_tune.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.config import VARIANTS
from model.data.annotations import GroundTruth
from model.training.options import TrainOptions
from model.weights.info import DEFAULT_MODEL_PATH

LONG_RUN_MINUTES = 10.0  # of a run that gets a larger input ...
LONG_RUN_ITERATIONS = 500  # ... or so many optimizer steps
DEFAULT_VARIANT = "lite-dino-efficientnet-lite0"  # of the embedded model

_SEEN_PIXELS = 14.0  # shorter side at the network's input that small boxes should have
_SEEN_PIXELS_OF_LONG_RUN = 20.0  # the same; a larger input finds more, but learns more slowly
_SMALL_BOXES = 10  # percent of the boxes of the smallest class that may be smaller
_FEWEST_BOXES = 10  # of a class that counts for the size
_CROWDED = 95  # percent of the images that have fewer boxes than the crowded ones
_QUERIES_PER_BOX = 12
_QUERY_GRID = 50
_MOST_QUERIES = 300
_SIDE_RANGE = (320, 640)  # pixels: longest side at the network's input
_GRID = 32  # pixels
_FEW_IMAGES = 1000
_EPOCHS = 60  # of a run whose length is not given
_ITERATION_RANGE = (1000, 20_000)  # of such a run
_SIDES = (("left", "right"), ("west", "east"))  # that mirroring exchanges


@dataclass(frozen=True)
class DataFacts:
    """What the choices depend on.

    Attributes:
        num_images: of the training data.
        num_boxes: without crowds.
        num_classes: of the data.
        image_side: median of the images' longest sides, in pixels.
        small_box: shorter side, relative to the longest side of the image, that 10 % of the boxes
            of the class with the smallest boxes do not reach.
        crowd: boxes on an image that 5 % of the images exceed.
        names: of the classes.
    """

    num_images: int
    num_boxes: int
    num_classes: int
    image_side: float
    small_box: float
    crowd: float = 1.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """An option that was chosen, and why."""

    name: str
    value: Any
    reason: str

    @property
    def flag(self) -> str:
        """Name of the flag that overrides it."""
        return self.name.replace("_", "-")

    @property
    def shown(self) -> str:
        """The value as it is typed on the command line."""
        if isinstance(self.value, tuple):
            return ",".join(map(str, self.value))
        if self.value == DEFAULT_MODEL_PATH:
            return "(the default model)"
        return str(self.value)


def facts_of(truth: GroundTruth, sizes: Mapping[int, tuple[float, float]]) -> DataFacts:
    """Returns the facts of a data set.

    Args:
        truth: with at least one box.
        sizes: width and height in pixels by image id.
    """
    longest = {key: max(size) for key, size in sizes.items()}
    sides: dict[int, list[float]] = defaultdict(list)
    for image in truth.images:
        for box in image.boxes:
            if not box.crowd and min(box.xywh[2:]) > 0 and image.image_id in longest:
                sides[box.category_id].append(min(box.xywh[2:]) / longest[image.image_id])
    boxes = [side for each in sides.values() for side in each]
    classes = [each for each in sides.values() if len(each) >= _FEWEST_BOXES] or [boxes]
    return DataFacts(
        num_images=len(truth.images),
        num_boxes=len(boxes),
        num_classes=len(truth.categories),
        image_side=float(np.median(list(longest.values()))) if longest else 0.0,
        crowd=float(np.percentile([len(image.boxes) for image in truth.images], _CROWDED)),
        small_box=min(float(np.percentile(each or [1.0], _SMALL_BOXES)) for each in classes),
        names=tuple(truth.categories.values()),
    )


def is_long(options: TrainOptions) -> bool:
    """Whether a run has the time for a larger input; True if its length is not given."""
    if options.max_minutes is not None:
        return options.max_minutes >= LONG_RUN_MINUTES
    given = "max_iterations" in options.model_fields_set
    return not given or options.max_iterations >= LONG_RUN_ITERATIONS


def input_side(facts: DataFacts, *, is_long: bool) -> int:
    """Returns the longest side of images at the network's input, in pixels.

    It is the smallest multiple of 32 at which small boxes have 14 pixels, as a smaller input trains
    more iterations in the same time; in long runs 20 pixels.

    Args:
        facts: of the training data.
        is_long: see `is_long`.
    """
    seen = _SEEN_PIXELS_OF_LONG_RUN if is_long else _SEEN_PIXELS
    wanted = seen / max(facts.small_box, 1e-6)
    side = math.ceil(wanted / _GRID) * _GRID
    return int(min(max(side, _SIDE_RANGE[0]), _SIDE_RANGE[1]))


def num_queries(facts: DataFacts, least: int) -> int:
    """Returns the number of queries, `least` or more.

    Nine tokens of the encoder learn to propose each object. With fewer queries than that the most
    frequent objects would take all of them, and rare or small ones would never be proposed.
    """
    wanted = math.ceil(_QUERIES_PER_BOX * facts.crowd / _QUERY_GRID) * _QUERY_GRID
    return max(min(wanted, _MOST_QUERIES), least)


def mirroring_changes_classes(names: Sequence[str]) -> bool:
    """Whether the mirror image of a class may be of another class, or of none.

    So it is with a class whose name with left for right, or west for east, is another class, and
    with letters and digits.
    """
    known = {name.casefold() for name in names}
    if sum(len(name) == 1 and name.isalnum() for name in known) > 1:
        return True
    return any(
        one in name and name.replace(one, other) in known for name in known for one, other in _SIDES
    )


def choose(
    options: TrainOptions, facts: DataFacts | None, processes: int = 1
) -> tuple[TrainOptions, list[Choice]]:
    """Returns the options with the choices that the user has not made, and these choices.

    Args:
        options: of the run.
        facts: of the user's own data; None: it is not trained on.
        processes: that train together.
    """
    given, choices = options.model_fields_set, []
    if facts is not None:
        choices = [each for each in _choices(options, facts, processes) if each.name not in given]
        options = options.changed(**{each.name: each.value for each in choices})
    if is_untrained(options):
        reason = "no start weights"
        new = (Choice("freeze_backbone_stages", 0, reason), Choice("backbone_lr_factor", 1, reason))
        choices += [each for each in new if each.name not in given]
        options = options.changed(**{each.name: each.value for each in choices})
    return options, choices


def is_untrained(options: TrainOptions) -> bool:
    """Whether a run starts from random weights."""
    return options.init_from is None and options.pretrained_backbone is None


def _choices(options: TrainOptions, facts: DataFacts, processes: int) -> Iterator[Choice]:
    """Yields a choice for each option that depends on the data."""
    few = facts.num_images < _FEW_IMAGES
    is_adapted = options.init_from is not None
    if options.variant == DEFAULT_VARIANT and is_untrained(options):
        is_adapted = "init_from" not in options.model_fields_set
        reason = "its encoder, decoder and boxes are kept; the class heads are adapted"
        yield Choice("init_from", DEFAULT_MODEL_PATH, reason)
    least = VARIANTS[options.variant].num_queries
    if (queries := num_queries(facts, least)) > least:
        yield Choice("num_queries", queries, f"up to {facts.crowd:.0f} boxes on an image")
    side = options.input_side or input_side(facts, is_long=is_long(options))
    pixels = facts.small_box * side
    yield Choice("input_side", side, f"small boxes then have about {pixels:.0f} px")
    yield Choice("sizes", (side - _GRID, side, side + _GRID), "around the input side")
    yield Choice("final_sizes", (side,), "the input side")
    if mirroring_changes_classes(facts.names):
        yield Choice("symmetries", "none", "mirroring would change classes such as left and right")
    else:
        reason = "fits most data; dihedral suits images from above, none text and arrows"
        yield Choice("symmetries", "hflip", reason)
    yield Choice("crop_probability", 0.3, f"{facts.num_images} images")
    yield Choice("mosaic_probability", 0.0 if few else 0.1, f"{facts.num_images} images")
    yield Choice("photometric", 0.5, "moderate changes of colour")
    yield Choice("invert_probability", 0.0, "inverted colours are for printed codes")
    yield Choice("grey_probability", 0.02, "colour may matter")
    if is_adapted or options.pretrained_backbone is not None:
        stages, why = (2, "few images") if few else (1, "many images")
        yield Choice("freeze_backbone_stages", stages, f"{why}: {facts.num_images}")
    batch = _batch_size(options, few=few)
    if few:
        yield Choice("batch_size", batch, "few images: more steps in the same time")
    if is_adapted:
        yield Choice("learning_rate", 4e-4, "a short run from trained weights")
        yield Choice("backbone_lr_factor", 0.5, "a short run from trained weights")
    if options.max_minutes is None and "max_iterations" not in options.model_fields_set:
        images = batch * options.accumulate * processes  # of a step
        least, most = _ITERATION_RANGE
        iterations = min(max(_EPOCHS * facts.num_images // images, least), most)
        epochs = iterations * images / max(facts.num_images, 1)
        reason = f"{epochs:.3g} epochs; of {_EPOCHS} epochs at least {least}, at most {most} steps"
        yield Choice("max_iterations", iterations, reason)
    elif "max_iterations" not in options.model_fields_set:
        yield Choice("max_iterations", 1_000_000, "max_minutes ends the run")


def _batch_size(options: TrainOptions, *, few: bool) -> int:
    """Returns the batch size of the run, given or chosen."""
    return 4 if few and "batch_size" not in options.model_fields_set else options.batch_size
