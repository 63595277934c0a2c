"""Buffers and streams of the GPU pipeline, with a stand-in for the GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model import build_detector
from model.detections import Detections
from model.postprocess import to_detections
from model.predictor import Predictor
from service.engine.device import BatchShape
from service.engine.gpu_pipeline import BatchLayout, GpuPipeline, PipelineLimits, fill
from tests.support import golden_case
from tests.support.standin_card import StandInCard

PADDED = (64, 128)
Images = list[npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    detector = build_detector(golden_case.CONFIG)
    golden_case.fill_from_names(detector)
    return Predictor(detector, golden_case.CONFIG)


@pytest.fixture
def card() -> StandInCard:
    return StandInCard()


@pytest.fixture
def pipeline(predictor: Predictor, card: StandInCard) -> GpuPipeline:
    return GpuPipeline(predictor, card, PipelineLimits(2, 2 * 64 * 128), max_graphs=4)


def _images(seed: int, *sizes: tuple[int, int]) -> Images:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def _sizes(images: Images) -> list[tuple[int, int]]:
    return [(image.shape[0], image.shape[1]) for image in images]


def _alone(predictor: Predictor, images: Images) -> list[Detections]:
    """The results of the same batch with separate buffers."""
    layout = BatchLayout(BatchShape(PADDED, len(images)))
    buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    fill(buffer, layout, images, len(images))
    rows = predictor.detect(layout.pixels(buffer), layout.sizes(buffer))
    return to_detections(rows.numpy(), _sizes(images))


def test_sizes_and_pixels_share_a_buffer_and_do_not_overlap() -> None:
    layout = BatchLayout(BatchShape((8, 16), 3))
    buffer = torch.zeros(layout.num_bytes + 7, dtype=torch.uint8)
    layout.sizes(buffer)[:] = -1
    assert layout.pixels(buffer).shape == (3, 8, 16, 3)
    assert not layout.pixels(buffer).any()
    layout.pixels(buffer)[:] = 255
    assert (layout.sizes(buffer) == -1).all()
    assert not buffer[layout.num_bytes :].any()


def test_a_buffer_takes_images_and_leaves_their_padding() -> None:
    layout = BatchLayout(BatchShape((8, 16), 2))
    buffer = torch.full((layout.num_bytes,), 7, dtype=torch.uint8)
    images = _images(0, (8, 16), (5, 3))
    fill(buffer, layout, iter(images), 2)
    assert layout.sizes(buffer).tolist() == [[8, 16], [5, 3]]
    np.testing.assert_array_equal(layout.pixels(buffer)[1, :5, :3].numpy(), images[1])
    assert (layout.pixels(buffer)[1, 5:] == 7).all()


def test_further_images_of_a_batch_have_the_size_of_its_bucket() -> None:
    layout = BatchLayout(BatchShape((8, 16), 4))
    buffer = torch.full((layout.num_bytes,), 7, dtype=torch.uint8)
    fill(buffer, layout, _images(0, (5, 3)), 1)
    assert layout.sizes(buffer).tolist() == [[5, 3], [8, 16], [8, 16], [8, 16]]
    assert (layout.pixels(buffer)[1:] == 7).all()


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ((1, 10**9), (1,)),
        ((2, 10**9), (1, 2)),
        ((8, 10**9), (1, 2, 4, 8)),
        ((12, 10**9), (1, 2, 4, 8, 12)),
        ((32, 7 * 64 * 128), (1, 2, 4, 7)),
        ((32, 100), (1,)),
    ],
)
def test_batches_run_in_few_sizes(limits: tuple[int, int], sizes: tuple[int, ...]) -> None:
    assert PipelineLimits(*limits).batch_sizes(PADDED) == sizes


def test_a_batch_that_is_filled_up_has_the_results_of_its_images(
    predictor: Predictor, card: StandInCard
) -> None:
    pipeline = GpuPipeline(predictor, card, PipelineLimits(8, 8 * 64 * 128), max_graphs=4)
    ran: list[int] = []
    detect = predictor.detect

    def recorded(pixels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        ran.append(len(pixels))
        return detect(pixels, sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "detect", recorded)
        for count in (8, 5, 3, 1):  # what remains in the buffers must not matter
            images = _images(count, *[(60 - 3 * i, 100 + 3 * i) for i in range(count)])
            result = pipeline.begin(images, PADDED, _sizes(images)).finish()
            assert len(result.detections) == count
            for found, image in zip(result.detections, images, strict=True):
                (alone,) = _alone(predictor, [image])
                np.testing.assert_allclose(found.scores, alone.scores, atol=1e-3)
    assert [count for count in ran if count > 1] == [8, 8, 4]


@pytest.mark.parametrize("sizes", [[(9, 16), (1, 1)], [(8, 17), (1, 1)], [(1, 1)], [(1, 1)] * 3])
def test_images_that_do_not_fit_are_refused(sizes: list[tuple[int, int]]) -> None:
    layout = BatchLayout(BatchShape((8, 16), 2))
    with pytest.raises(ValueError, match=r"does not fit|argument"):
        fill(torch.zeros(layout.num_bytes, dtype=torch.uint8), layout, _images(0, *sizes), 2)


@pytest.mark.parametrize("recorded", [False, True], ids=["launched", "replayed"])
def test_overlapping_batches_have_the_results_of_batches_alone(
    pipeline: GpuPipeline, predictor: Predictor, card: StandInCard, recorded: bool
) -> None:
    batches = [
        _images(seed, *sizes)
        for seed, sizes in enumerate([[(64, 128), (40, 50)], [(50, 70)], [(33, 128), (64, 9)]] * 2)
    ]
    if recorded:
        for images in batches[:2]:
            pipeline.begin(images, PADDED, _sizes(images)).finish()
            assert pipeline.record(BatchShape(PADDED, len(images)))
    checked, in_flight, results = card.replays, None, []
    for images in batches:
        following = pipeline.begin(iter(images), PADDED, _sizes(images))
        if in_flight is not None:
            results.append(in_flight.finish())
        in_flight = following
    assert in_flight is not None
    results.append(in_flight.finish())
    assert card.replays - checked == (len(batches) if recorded else 0)
    for images, result in zip(batches, results, strict=True):
        for found, expected in zip(result.detections, _alone(predictor, images), strict=True):
            np.testing.assert_array_equal(found.scores, expected.scores)
            np.testing.assert_array_equal(found.labels, expected.labels)
            np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_the_copy_has_its_own_stream_and_the_host_waits_once(
    pipeline: GpuPipeline, card: StandInCard
) -> None:
    images = _images(0, (64, 128))
    result = pipeline.begin(images, PADDED, [(64, 128)]).finish()
    assert card.notes == [
        "copy: event 1",  # the copy begins
        "copy: event 2",
        "compute: wait for event 2",
        "compute: event 3",  # the network begins
        "compute: event 4",
        "compute: event 5",  # the rows are with the host
    ]
    assert card.syncs == 1
    assert (result.copy_ms, result.forward_ms) == (0.25, 0.25)
    assert result.postprocess_ms >= 0.25
    assert result.assemble_ms > 0


def test_buffers_are_used_in_turn_and_only_two_batches_fit(
    pipeline: GpuPipeline, card: StandInCard
) -> None:
    first, second = _images(0, (64, 128)), _images(1, (64, 128))
    one = pipeline.begin(first, PADDED, [(64, 128)])
    two = pipeline.begin(second, PADDED, [(64, 128)])
    hosts = [buffer for buffer in card.buffers[:-1] if buffer.numel() == card.buffers[-1].numel()]
    pixels = [BatchLayout(BatchShape(PADDED, 1)).pixels(host)[0].numpy() for host in hosts]
    held = {image.tobytes() for image in pixels}
    assert held == {first[0].tobytes(), second[0].tobytes()}
    with pytest.raises(AssertionError, match="two batches"):
        pipeline.begin(first, PADDED, [(64, 128)])
    one.finish()
    pipeline.begin(first, PADDED, [(64, 128)]).finish()
    two.finish()


def test_a_batch_is_done_when_the_gpu_is(pipeline: GpuPipeline, card: StandInCard) -> None:
    card.busy = True
    batch = pipeline.begin(_images(0, (64, 128)), PADDED, [(64, 128)])
    assert not batch.done()
    card.busy = False
    assert batch.done()
    card.lost = True
    assert batch.done()
    with pytest.raises(RuntimeError, match="illegal"):
        batch.finish()


@pytest.mark.parametrize(
    ("sizes", "padded"), [([(64, 128)] * 3, PADDED), ([(8, 8)], (65, 512)), ([(65, 8)], PADDED)]
)
def test_a_batch_beyond_the_limits_is_refused_and_holds_nothing(
    pipeline: GpuPipeline, sizes: list[tuple[int, int]], padded: tuple[int, int]
) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match=r"larger than the buffers|fit"):
            pipeline.begin(_images(0, *sizes), padded, sizes)
    pipeline.begin(_images(0, (8, 8)), PADDED, [(8, 8)]).finish()
