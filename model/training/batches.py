"""Training batches: which images, at which size, how augmented; all determined by the run's seed.

The training process plans a batch as a list of `ImagePlan`s (`BatchPlanner`); the loading
processes carry the plan out (`AugmentedImages`, `collate`). A plan depends on seed, epoch and
iteration alone, so a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model.data.annotations import DataError
from model.training.augment import AugmentRule, augment, mosaic
from model.training.options import TrainOptions
from model.training.sources import AnnotatedImage, ImageSource
from model.training.targets import Targets, pad_targets

LOG = logging.getLogger(__name__)

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1
STD = (0.229, 0.224, 0.225)
_GRID = 32  # pixels; sides of a batch are multiples of it
# Height and width over the longest side, drawn evenly; pictures are seldom square.
_SHAPES = ((1.0, 1.0), (0.75, 1.0), (0.75, 1.0), (1.0, 0.75), (1.0, 0.75))
_MIN_EPOCH_BATCHES = 50  # small sets are repeated: a new epoch costs a new loading process
_READ_TRIES = 5  # other pictures tried in place of an unreadable one


@dataclass(frozen=True)
class ImagePlan:
    """One picture of a batch, as planned."""

    index: int  # in the source
    seed: tuple[int, int, int]  # run, epoch, place in the epoch
    height: int  # pixels of the batch
    width: int
    final: bool  # whole pictures without mosaics, as the end of a run wants them


@dataclass(frozen=True)
class Batch:
    """What the loop trains on.

    Attributes:
        images: uint8 [B, H, W, 3] RGB, zero on padding.
        padding_mask: bool [B, H, W], True on padding (right and bottom).
        targets: boxes in 0..1 of each unpadded image.
    """

    images: Tensor
    padding_mask: Tensor
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.images.to(device), self.padding_mask.to(device), self.targets.to(device))


def normalise(images: Tensor, padding_mask: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] channels-last, zero on padding."""
    mean, std = (torch.tensor(values, device=images.device) * 255 for values in (MEAN, STD))
    floats = (images.float() - mean) / std
    return floats.masked_fill_(padding_mask[..., None], 0.0).permute(0, 3, 1, 2)


class AugmentedImages(Dataset[AnnotatedImage]):
    """Makes the pictures that a plan asks for."""

    def __init__(self, source: ImageSource, options: TrainOptions) -> None:
        """Takes what matters here from the options."""
        self._source = source
        self._mosaic_probability = options.mosaic_probability
        self._rule = AugmentRule(
            symmetries=options.symmetries,
            crop_probability=options.crop_probability,
            photometric=options.photometric,
            invert_probability=options.invert_probability,
            grey_probability=options.grey_probability,
        )

    def __getitem__(self, draw: ImagePlan) -> AnnotatedImage:
        """One changed picture of at most draw.height x draw.width pixels."""
        rng = np.random.default_rng(draw.seed)
        size = (draw.height, draw.width)
        rule = replace(self._rule, crop_probability=0.0) if draw.final else self._rule
        if not draw.final and rng.random() < self._mosaic_probability:
            others = (draw.index, *rng.integers(len(self._source), size=3).tolist())
            half = (draw.height // 2, draw.width // 2)
            parts = [augment(self._load(index, rng), half, rule, rng) for index in others]
            return mosaic(parts, size, rng)
        return augment(self._load(draw.index, rng), size, rule, rng)

    def _load(self, index: int, rng: np.random.Generator) -> AnnotatedImage:
        """The picture, or another one if it cannot be read: one bad file must not end a run."""
        for _ in range(_READ_TRIES):
            try:
                return self._source.load(index)
            except DataError as error:
                LOG.warning("%s; another picture takes its place", error)
                index = int(rng.integers(len(self._source)))
        return self._source.load(index)


class BatchPlanner(Sampler[list[ImagePlan]]):
    """Plans one epoch.

    Args:
        options: of the run.
        count: pictures in the source.
        epoch: number of the epoch.
        start: batches of it that were already trained on.
        is_final: says, for a batch's number in the epoch, whether it is in the run's last part.
    """

    def __init__(
        self,
        options: TrainOptions,
        count: int,
        epoch: int,
        start: int,
        is_final: Callable[[int], bool],
    ) -> None:
        """Shuffles the pictures."""
        self._options = options
        self._epoch = epoch
        self._start = start
        self._is_final = is_final
        rng = np.random.default_rng((options.seed, epoch))
        wanted = max(count // options.batch_size, _MIN_EPOCH_BATCHES) * options.batch_size
        rounds = -(-wanted // count)
        order = np.concatenate([rng.permutation(count) for _ in range(rounds)])
        self._order: list[int] = order[:wanted].tolist()

    def __len__(self) -> int:
        """Batches left in the epoch."""
        return len(self._order) // self._options.batch_size - self._start

    def __iter__(self) -> Iterator[list[ImagePlan]]:
        """Yields the epoch's batches from `start` on."""
        options, size = self._options, self._options.batch_size
        for number in range(self._start, len(self._order) // size):
            final = self._is_final(number)
            sides = options.final_sizes if final and options.final_sizes else options.sizes
            rng = np.random.default_rng((options.seed, self._epoch, number, 1))
            side = sides[int(rng.integers(len(sides)))]
            shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
            height, width = (max(round(side * part / _GRID), 1) * _GRID for part in shape)
            places = range(number * size, (number + 1) * size)
            yield [
                ImagePlan(self._order[p], (options.seed, self._epoch, p), height, width, final)
                for p in places
            ]


def collate(pictures: list[AnnotatedImage]) -> Batch:
    """Pads pictures to the largest of them."""
    height = max(picture.pixels.shape[0] for picture in pictures)
    width = max(picture.pixels.shape[1] for picture in pictures)
    images = np.zeros((len(pictures), height, width, 3), np.uint8)
    mask = np.ones((len(pictures), height, width), np.bool_)
    labels, boxes = [], []
    for row, picture in enumerate(pictures):
        high, wide = picture.pixels.shape[:2]
        images[row, :high, :wide] = picture.pixels
        mask[row, :high, :wide] = False
        labels.append(torch.from_numpy(picture.labels))
        corners = np.clip(picture.boxes / np.array((wide, high) * 2, np.float32), 0, 1)
        centre, extent = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        boxes.append(torch.from_numpy(np.concatenate((centre, extent), 1)))
    return Batch(torch.from_numpy(images), torch.from_numpy(mask), pad_targets(labels, boxes))


def make_loader(
    source: ImageSource, planner: BatchPlanner, options: TrainOptions
) -> DataLoader[Batch]:
    """One epoch's batches, made ahead of their use."""
    return DataLoader(
        AugmentedImages(source, options),  # type: ignore[arg-type]
        batch_sampler=planner,
        collate_fn=collate,
        num_workers=options.workers,
        prefetch_factor=4 if options.workers else None,
        worker_init_fn=_prepare_worker,
        # Else a loader would draw from the global generator, whose course a resumed run must keep.
        generator=torch.Generator(),
    )


def _prepare_worker(_number: int) -> None:
    """The loop decides when to stop: Ctrl-C reaches loading processes too, and they ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
