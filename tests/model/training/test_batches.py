"""Planning and making batches."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from model.training.batches import (
    AugmentedImages,
    BatchPlanner,
    ImagePlan,
    _prepare_worker,
    collate,
    make_loader,
    normalise,
)
from model.training.sources import AnnotatedImage, CacheSource
from tests.model.training.tiny import LABELS, tiny_options, write_cache


def _never(_batch: int) -> bool:
    return False


def test_plan_started_later_is_the_rest_of_the_whole_plan(tmp_path: Path) -> None:
    options = tiny_options(tmp_path, sizes=(96, 128))
    whole = list(BatchPlanner(options, 30, 2, 0, _never))
    assert list(BatchPlanner(options, 30, 2, 20, _never)) == whole[20:]
    assert len(BatchPlanner(options, 30, 2, 20, _never)) == len(whole) - 20
    assert list(BatchPlanner(options, 30, 3, 0, _never)) != whole


def test_every_image_is_drawn_once_before_any_is_drawn_twice(tmp_path: Path) -> None:
    draws = [d for batch in BatchPlanner(tiny_options(tmp_path), 120, 0, 0, _never) for d in batch]
    assert sorted(draw.index for draw in draws) == list(range(120))


def test_final_batches_have_the_final_sizes(tmp_path: Path) -> None:
    options = tiny_options(tmp_path, sizes=(64,), final_sizes=(128,))
    plan = list(BatchPlanner(options, 10, 0, 0, lambda batch: batch >= 40))
    assert {max(draw.height, draw.width) for batch in plan[:40] for draw in batch} == {64}
    assert {max(draw.height, draw.width) for batch in plan[40:] for draw in batch} == {128}


def _image(height: int, width: int, boxes: int) -> AnnotatedImage:
    box = np.array([[0, 0, width / 2, height]] * boxes, np.float32).reshape(-1, 4)
    return AnnotatedImage(np.full((height, width, 3), 9, np.uint8), box, np.zeros(boxes, np.int64))


def test_later_batches_have_the_later_sizes_until_the_final_part(tmp_path: Path) -> None:
    options = tiny_options(
        tmp_path, sizes=(96,), later_sizes=(160,), final_sizes=(128,), batch_size=2
    )
    planner = BatchPlanner(
        options, 100, 0, 0, lambda batch: batch >= 40, is_later=lambda batch: batch >= 20
    )
    longest = [max(plan.height, plan.width) for batch in planner for plan in batch[:1]]
    assert longest[:20] == [96] * 20
    assert longest[20:40] == [160] * 20
    assert set(longest[40:]) == {128}


def test_collate_pads_right_and_bottom_and_scales_boxes_by_the_unpadded_size() -> None:
    batch = collate([_image(20, 40, 1), _image(30, 10, 0)])
    assert batch.images.shape == (2, 30, 40, 3)
    assert (~batch.padding_mask).sum((1, 2)).tolist() == [800, 300]
    assert bool(batch.padding_mask[0, 20:].all())
    assert batch.targets.boxes[0, 0].tolist() == [0.25, 0.5, 0.5, 1.0]
    assert batch.targets.present.tolist() == [[True], [False]]


def test_normalised_images_are_channels_last_and_zero_on_padding() -> None:
    batch = collate([_image(20, 40, 1), _image(30, 10, 0)])
    images = normalise(batch.images, batch.padding_mask)
    assert images.shape == (2, 3, 30, 40)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert float(images[0, :, 20:].abs().max()) == 0
    expected = (9 / 255 - 0.485) / 0.229
    assert abs(float(images[0, 0, 0, 0]) - expected) < 1e-5


def test_unreadable_image_is_replaced_by_another(tmp_path: Path) -> None:
    source = CacheSource(write_cache(tmp_path, 4), LABELS)
    (tmp_path / "1.png").write_bytes(b"broken")
    images = AugmentedImages(source, tiny_options(tmp_path))
    assert images[ImagePlan(1, (0, 0, 0), 96, 96, False)].pixels.shape[1] == 96


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_loading_process_gives_the_same_batches_as_the_training_process(tmp_path: Path) -> None:
    source = CacheSource(write_cache(tmp_path, 4), LABELS)
    kinds = []
    for workers in (0, 1):
        options = tiny_options(
            tmp_path, workers=workers, symmetries="dihedral", photometric=1.0, crop_probability=0.5
        )
        planner = BatchPlanner(options, 4, 0, 46, _never)
        kinds.append(list(make_loader(source, planner, options)))
    for here, there in zip(*kinds, strict=True):
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.targets.boxes, there.targets.boxes)


def test_loading_process_survives_the_first_signal_to_stop() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _prepare_worker(0)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the second one ends it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
