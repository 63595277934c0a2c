"""Images of an evaluation, read when they are needed or by threads that are ahead."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from model import VARIANTS
from model.data.annotations import DataError, ImageAnnotations
from model.data.image_files import read_for_model
from model.evaluation import batches
from model.evaluation.batches import image_batches
from model.images.decode import UprightImage

CONFIG = replace(VARIANTS["lite-dino-r18-small"], shortest_side=64, longest_side=128)
COUNT = 40


@pytest.fixture
def images(tmp_path: Path) -> list[ImageAnnotations]:
    for number in range(COUNT):
        Image.new("L", (64 + 32 * (number % 3), 64)).save(tmp_path / f"{number}.png")
    return [ImageAnnotations(number, f"{number}.png", ()) for number in range(COUNT)]


@pytest.mark.parametrize("readers", [0, 1, 4])
def test_every_image_is_in_one_batch_of_its_bucket(
    images: list[ImageAnnotations], tmp_path: Path, readers: int
) -> None:
    found = list(image_batches(images, tmp_path, CONFIG, 5, readers=readers))
    assert sorted(item.image_id for batch in found for item in batch) == list(range(COUNT))
    assert all(len({item.padded for item in batch}) == 1 for batch in found)
    assert sum(len(batch) == 5 for batch in found) >= 6
    expected = image_batches(images, tmp_path, CONFIG, 5)
    assert [[i.image_id for i in b] for b in found] == [[i.image_id for i in b] for b in expected]


@pytest.mark.parametrize("readers", [0, 3])
def test_an_unreadable_image_is_an_error_or_left_out(
    images: list[ImageAnnotations], tmp_path: Path, readers: int
) -> None:
    (tmp_path / "7.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"7\.png cannot be read"):
        list(image_batches(images, tmp_path, CONFIG, 5, readers=readers))
    failed: list[int] = []
    found = image_batches(
        images,
        tmp_path,
        CONFIG,
        5,
        on_unreadable=lambda image, _error: failed.append(image.image_id),
        readers=readers,
    )
    assert sum(len(batch) for batch in found) == COUNT - 1
    assert failed == [7]


def test_threads_end_with_the_batches_and_are_only_a_little_ahead(
    images: list[ImageAnnotations], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counting(path: Path, *arguments: object) -> UprightImage:
        read.append(path.name)
        return read_for_model(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(batches, "read_for_model", counting)
    before = threading.active_count()
    generator = image_batches(images, tmp_path, CONFIG, 1, readers=2)
    next(generator)
    assert len(read) <= 6  # two a thread ahead, and the one that is used
    generator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(read) <= 6
