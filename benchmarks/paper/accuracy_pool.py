"""The training images of the accuracy study, as maps of the frozen backbone.

The backbone is frozen and the same in every arm, so it computes each augmented image once. Every
run draws from this pool, and a step costs only what differs between the arms. The maps are stored
in float16.

A pool is a folder of shards, one folder each, which appear when they are complete.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.paper.accuracy_arms import ARMS, BASE, start
from benchmarks.paper.accuracy_sets import ImageSet
from model.network.backbone.base import Maps
from model.training.batches import AugmentedImages, Batch, ImagePlan, collate, normalise
from model.training.options import TrainOptions
from model.training.sources import AnnotatedImage, CocoSource
from model.training.targets import pad_targets

SIZE = (192, 256)  # (H, W) of every image, padding included
_SHARD = 500  # images
_BATCH = 20  # images that the backbone computes together
_SEED = 20230615  # of the augmentation
_STRIDES = (8, 16, 32)
_ARRAYS = ("sizes", "counts", "labels", "boxes")
# The augmentation of `lite-detr train`, without mosaics and with fewer crops.
_AUGMENTATION = TrainOptions(crop_probability=0.3, mosaic_probability=0.0)


def fill(images: ImageSet, count: int, workers: int) -> None:
    """Computes a pool, or the shards that it lacks.

    Args:
        images: the set; its "train" part is augmented.
        count: of augmented images.
        workers: processes to use.

    Raises:
        DataError: for images that cannot be used.
    """
    folder = pool_folder(images)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (images, count, number)
        for number in range(-(-count // _SHARD))
        if not _shard_folder(folder, number).is_dir()
    ]
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            _fill_shard(*task)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as processes:
        processes.starmap(_fill_shard, tasks, chunksize=1)


def pool_folder(images: ImageSet) -> Path:
    """The folder of a set's pool."""
    return images.folder / "pool"


def _shard_folder(folder: Path, number: int) -> Path:
    return folder / f"{number:03d}"


def _fill_shard(images: ImageSet, count: int, number: int) -> None:
    torch.set_num_threads(1)
    source = CocoSource(images.annotations("train"), images.images("train"))
    augmented = AugmentedImages(source, _AUGMENTATION)
    backbone = start(ARMS["a"], BASE, source.label_names, seed=0).backbone[0]
    first, last = number * _SHARD, min((number + 1) * _SHARD, count)
    indices = _drawn(len(source), count)[first:last]
    arrays: dict[str, list[Any]] = {name: [] for name in (*_ARRAYS, *map(_map_name, _STRIDES))}
    for begin in range(0, last - first, _BATCH):
        places = range(begin, min(begin + _BATCH, last - first))
        plans = [ImagePlan(indices[p], (_SEED, 0, first + p), *SIZE, False) for p in places]
        _append(arrays, [augmented[plan] for plan in plans], backbone)
    _write_shard(_shard_folder(pool_folder(images), number), arrays)


def _drawn(available: int, count: int) -> list[int]:
    """The source images of a pool, each as often as any other."""
    rng = np.random.default_rng(_SEED)
    rounds = [rng.permutation(available) for _ in range(-(-count // available))]
    indices: list[int] = np.concatenate(rounds)[:count].tolist()
    return indices


def _map_name(stride: int) -> str:
    return f"stride_{stride}"


def _append(
    arrays: dict[str, list[Any]], images: list[AnnotatedImage], backbone: torch.nn.Module
) -> None:
    """Appends the maps and the targets of some images."""
    batch = collate(images)
    height, width = batch.padding_mask.shape[1:]
    right, below = SIZE[1] - width, SIZE[0] - height
    pixels = functional.pad(batch.images, (0, 0, 0, right, 0, below))
    mask = functional.pad(batch.padding_mask, (0, right, 0, below), value=True)
    maps = backbone(normalise(pixels, mask))
    for stride, features in zip(_STRIDES, maps, strict=True):
        arrays[_map_name(stride)].append(features.permute(0, 2, 3, 1).half().numpy())
    present = batch.targets.present
    arrays["sizes"].append(np.array([image.pixels.shape[:2] for image in images]))
    arrays["counts"].append(present.sum(1).numpy())
    arrays["labels"].append(batch.targets.labels[present].numpy())
    arrays["boxes"].append(batch.targets.boxes[present].numpy())


def _write_shard(folder: Path, arrays: dict[str, list[Any]]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, chunks in arrays.items():
        np.save(part / f"{name}.npy", np.concatenate(chunks))
    os.replace(part, folder)


class Pool:
    """The augmented images of a set.

    Args:
        images: the set.
        count: of augmented images.

    Raises:
        ValueError: if the pool is not complete.
    """

    def __init__(self, images: ImageSet, count: int) -> None:
        """Opens the shards; the maps stay on disk."""
        folder = pool_folder(images)
        self.count = count
        self._shards = []
        for number in range(-(-count // _SHARD)):
            shard = _shard_folder(folder, number)
            if not shard.is_dir():
                raise ValueError(f"{shard} is missing: run the command prepare first")
            self._shards.append(_Shard(shard))

    def batch(self, numbers: Sequence[int]) -> tuple[Batch, Maps]:
        """Some images: targets and padding without pixels, and the maps of the backbone."""
        images = [self._shards[number // _SHARD].image(number % _SHARD) for number in numbers]
        mask = torch.ones(len(images), *SIZE, dtype=torch.bool)
        for row, (_, (height, width), _, _) in enumerate(images):
            mask[row, :height, :width] = False
        maps = [
            torch.from_numpy(np.stack(level).astype(np.float32)).permute(0, 3, 1, 2)
            for level in zip(*(image[0] for image in images), strict=True)
        ]
        targets = pad_targets([image[2] for image in images], [image[3] for image in images])
        nothing = torch.zeros(len(images), *SIZE, 3, dtype=torch.uint8)
        return Batch(nothing, mask, targets), (maps[0], maps[1], maps[2])


class _Shard:
    """One folder of a pool."""

    def __init__(self, folder: Path) -> None:
        self._maps = [
            np.load(folder / f"{_map_name(stride)}.npy", mmap_mode="r") for stride in _STRIDES
        ]
        sizes, counts, labels, boxes = (np.load(folder / f"{name}.npy") for name in _ARRAYS)
        self._sizes: list[tuple[int, int]] = [(int(high), int(wide)) for high, wide in sizes]
        ends = np.cumsum(counts).tolist()
        self._bounds = list(zip([0, *ends[:-1]], ends, strict=True))
        self._labels, self._boxes = torch.from_numpy(labels), torch.from_numpy(boxes)

    def image(
        self, row: int
    ) -> tuple[list[npt.NDArray[np.float16]], tuple[int, int], Tensor, Tensor]:
        """The maps [h, w, c], the (H, W) without padding, the labels and the boxes of an image."""
        targets = slice(*self._bounds[row])
        maps = [level[row] for level in self._maps]
        return maps, self._sizes[row], self._labels[targets], self._boxes[targets]
