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
from types import FrameType

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
# Height and width relative to the longest side, equally likely; images are seldom square.
_SHAPES = ((1.0, 1.0), (0.75, 1.0), (0.75, 1.0), (1.0, 0.75), (1.0, 0.75))
_MIN_EPOCH_BATCHES = 50  # small sets are repeated: an epoch starts new loading processes
_READ_TRIES = 5  # images tried in place of an unreadable one


@dataclass(frozen=True)
class ImagePlan:
    """One image of a batch, as planned."""

    index: int  # in the source
    seed: tuple[int, int, int]  # of the run, epoch, position in the epoch
    height: int  # pixels of the batch
    width: int
    final: bool  # in the final part of the run: whole images, no mosaics


@dataclass(frozen=True)
class Batch:
    """Images and targets of one forward pass.

    Attributes:
        images: uint8 [B, H, W, 3] RGB, zero on padding.
        padding_mask: bool [B, H, W], True on padding (right and bottom).
        targets: with boxes in 0..1 of each unpadded image.
    """

    images: Tensor
    padding_mask: Tensor
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        """Copies the batch to a device."""
        return Batch(self.images.to(device), self.padding_mask.to(device), self.targets.to(device))

    def split(self, parts: int) -> list[Batch]:
        """Returns the batch in up to that many parts of equal size, the last may be smaller."""
        size = -(-len(self.images) // parts)
        targets = self.targets
        return [
            Batch(
                self.images[start : start + size],
                self.padding_mask[start : start + size],
                Targets(
                    targets.labels[start : start + size],
                    targets.boxes[start : start + size],
                    targets.present[start : start + size],
                ),
            )
            for start in range(0, len(self.images), size)
        ]


def normalise(images: Tensor, padding_mask: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] channels-last, zero on padding."""
    mean, std = (torch.tensor(values, device=images.device) * 255 for values in (MEAN, STD))
    floats = (images.float() - mean) / std
    return floats.masked_fill_(padding_mask[..., None], 0.0).permute(0, 3, 1, 2)


class AugmentedImages(Dataset[AnnotatedImage]):
    """Loads and augments the images of a plan."""

    def __init__(self, source: ImageSource, options: TrainOptions) -> None:
        """Reads the options of the augmentation."""
        self._source = source
        self._unreadable: set[int] = set()  # that a warning has named
        self._mosaic_probability = options.mosaic_probability
        self._rule = AugmentRule(
            symmetries=options.symmetries,
            crop_probability=options.crop_probability,
            photometric=options.photometric,
            invert_probability=options.invert_probability,
            grey_probability=options.grey_probability,
        )

    def __getitem__(self, plan: ImagePlan) -> AnnotatedImage:
        """Returns an augmented image of at most plan.height x plan.width pixels."""
        rng = np.random.default_rng(plan.seed)
        size = (plan.height, plan.width)
        rule = replace(self._rule, crop_probability=0.0) if plan.final else self._rule
        if not plan.final and rng.random() < self._mosaic_probability:
            others = (plan.index, *rng.integers(len(self._source), size=3).tolist())
            half = (plan.height // 2, plan.width // 2)
            parts = [augment(self._load(index, rng), half, rule, rng) for index in others]
            return mosaic(parts, size, rng)
        return augment(self._load(plan.index, rng), size, rule, rng)

    def _load(self, index: int, rng: np.random.Generator) -> AnnotatedImage:
        """Loads an image, or another one if it cannot be read: a bad file must not end a run."""
        for _ in range(_READ_TRIES):
            try:
                return self._source.load(index)
            except DataError as error:
                if index not in self._unreadable:
                    LOG.warning("%s; another image takes its place", error)
                    self._unreadable.add(index)
                index = int(rng.integers(len(self._source)))
        try:
            return self._source.load(index)
        except DataError as error:
            raise DataError(f"{_READ_TRIES + 1} images in a row cannot be read: {error}") from error


class BatchPlanner(Sampler[list[ImagePlan]]):
    """Plans one epoch.

    Args:
        options: of the run.
        count: number of images in the source.
        epoch: number of the epoch.
        start: number of its batches that are already done.
        is_final: whether a batch, by its number in the epoch, is in the run's final part.
        is_later: whether it has the later sizes; None: none has.
        rank: number of this process; it gets its part of each batch of all processes.
        processes: their number.
    """

    def __init__(  # noqa: PLR0913 - the position in the run
        self,
        options: TrainOptions,
        count: int,
        epoch: int,
        start: int,
        is_final: Callable[[int], bool],
        *,
        is_later: Callable[[int], bool] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Shuffles the images."""
        self._rank = rank
        self._stride = options.batch_size * processes  # images of a step of all processes
        self._options = options
        self._epoch = epoch
        self._start = start
        self._is_final = is_final
        self._is_later = is_later
        rng = np.random.default_rng((options.seed, epoch))
        wanted = max(count // self._stride, _MIN_EPOCH_BATCHES) * self._stride
        rounds = -(-wanted // count)
        order = np.concatenate([rng.permutation(count) for _ in range(rounds)])
        self._order: list[int] = order[:wanted].tolist()

    def __len__(self) -> int:
        """Number of batches left in the epoch."""
        return len(self._order) // self._stride - self._start

    def __iter__(self) -> Iterator[list[ImagePlan]]:
        """Yields the epoch's batches from `start` on."""
        options, size = self._options, self._options.batch_size
        for number in range(self._start, len(self._order) // self._stride):
            final = self._is_final(number)
            sides = self._sides(number, final=final)
            rng = np.random.default_rng((options.seed, self._epoch, number, 1))
            side = sides[int(rng.integers(len(sides)))]
            shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
            height, width = (max(round(side * part / _GRID), 1) * _GRID for part in shape)
            first = number * self._stride + self._rank * size
            places = range(first, first + size)
            yield [
                ImagePlan(self._order[p], (options.seed, self._epoch, p), height, width, final)
                for p in places
            ]

    def _sides(self, number: int, *, final: bool) -> tuple[int, ...]:
        """Returns the longest sides, in pixels, of which a batch draws one."""
        options = self._options
        if final and options.final_sizes:
            return options.final_sizes
        if options.later_sizes and self._is_later is not None and self._is_later(number):
            return options.later_sizes
        return options.sizes


def collate(images: list[AnnotatedImage]) -> Batch:
    """Pads images to the largest of them."""
    height = max(image.pixels.shape[0] for image in images)
    width = max(image.pixels.shape[1] for image in images)
    pixels = np.zeros((len(images), height, width, 3), np.uint8)
    mask = np.ones((len(images), height, width), np.bool_)
    labels, boxes = [], []
    for row, image in enumerate(images):
        high, wide = image.pixels.shape[:2]
        pixels[row, :high, :wide] = image.pixels
        mask[row, :high, :wide] = False
        labels.append(torch.from_numpy(image.labels))
        corners = np.clip(image.boxes / np.array((wide, high) * 2, np.float32), 0, 1)
        centre, extent = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        boxes.append(torch.from_numpy(np.concatenate((centre, extent), 1)))
    return Batch(torch.from_numpy(pixels), torch.from_numpy(mask), pad_targets(labels, boxes))


def make_loader(
    source: ImageSource, planner: BatchPlanner, options: TrainOptions
) -> DataLoader[Batch]:
    """Returns a loader of one epoch's batches, which works ahead of the training."""
    return DataLoader(
        AugmentedImages(source, options),  # type: ignore[arg-type]
        batch_sampler=planner,
        collate_fn=collate,
        num_workers=options.workers,
        prefetch_factor=4 if options.workers else None,
        worker_init_fn=_prepare_worker,
        # Otherwise a loader draws from the global generator, whose state a resumed run restores.
        generator=torch.Generator(),
    )


def load_batches(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Yields the batches of a loader.

    Raises:
        DataError: with its own message only; torch adds the traceback of the loading process.
    """
    try:
        yield from loader
    except DataError as error:
        raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from error


def _prepare_worker(_number: int) -> None:
    """Leaves signals to stop to the training loop, which still needs the loading processes.

    Ctrl-C, SIGHUP of a terminal and, from `timeout` or a service manager, SIGTERM reach them too.
    A second SIGTERM ends them: the first one may have been that of the loop, which ends hanging
    processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_next_time)


def _end_next_time(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
