"""A network of inverted bottlenecks in one call equals one convolution after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from model.ops import bottlenecks
from model.ops.bottlenecks import Bottleneck, Folded
from tests.model.ops.bottleneck_cases import Case, assert_right, images_of

pytestmark = [
    pytest.mark.skipif(not bottlenecks.available(), reason="needs the compiled kernels"),
    pytest.mark.usefixtures("one_and_three_threads"),
]


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 9), (2, 2), (3, 50), (31, 33), (64, 64), (90, 7), (100, 126)],
    ids=str,
)
def test_maps_are_those_of_plain_convolutions(size: tuple[int, int]) -> None:
    assert_right(Case.random(), images_of(1, 3, *size))


@pytest.mark.parametrize("expansion", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_every_kind_of_block_on_a_small_and_a_large_map(
    kernel: int, stride: int, expansion: int
) -> None:
    for outputs in (8, 32):  # not a whole vector of some processors; with a residual
        case = Case.random(((outputs, expansion, kernel, stride),), taps=(0,))
        for size in ((40, 44), (75, 90)):
            assert_right(case, images_of(1, 3, *size))


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_an_image_has_the_same_maps_to_the_bit_alone_and_in_a_batch(batch: int) -> None:
    case, images = Case.random(), images_of(batch, 3, 70, 93)
    together = case.run(images)
    torch.set_num_threads(1)
    for index in range(batch):
        for found, alone in zip(together, case.run(images[index : index + 1]), strict=True):
            assert torch.equal(found[index : index + 1], alone)


def test_images_are_read_in_any_memory_format() -> None:
    case, images = Case.random(), images_of(2, 3, 40, 50)
    planar = case.run(images)
    padded = torch.zeros(2, 4, 50, 60)[:, :3, 5:45, 7:57].copy_(images)
    for other in (images.contiguous(memory_format=torch.channels_last), padded):
        assert all(map(torch.equal, planar, case.run(other)))


def test_an_empty_batch_has_empty_maps() -> None:
    assert [tuple(each.shape) for each in Case.random().run(torch.zeros(0, 3, 32, 32))] == [
        (0, 24, 8, 8),
        (0, 40, 4, 4),
        (0, 112, 2, 2),
    ]


def test_nan_is_not_hidden() -> None:
    images = images_of(1, 3, 32, 32)
    images[0, 0, 3, 3] = float("nan")
    assert Case.random().run(images)[0].isnan().any()


def test_calls_at_the_same_time_do_not_share_memory() -> None:
    case = Case.random()
    images = [images_of(1, 3, 40 + 8 * n, 64) for n in range(4)]
    expected = [case.run(each) for each in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(case.run, images), expected, strict=True):
                assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    ("width", "kernel", "stride"), [(24, 3, 1), (32, 7, 1), (32, 1, 1), (32, 3, 4)]
)
def test_other_blocks_do_not_fit(width: int, kernel: int, stride: int) -> None:
    def folded(*shape: int) -> Folded:
        return Folded(torch.zeros(shape), torch.zeros(shape[0]))

    depthwise, project = folded(width, 1, kernel, kernel), folded(8, width, 1, 1)
    assert not Bottleneck(None, depthwise, project, stride, residual=False).fits()
