"""The resize of serving, compared with Pillow and with numpy, and without a C++ compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.geometry import resized_size
from model.images import resize
from model.images.resize import resize_bilinear
from model.native import prebuilt
from model.native.library import RESIZE, BuildError

Pixels = npt.NDArray[np.uint8]
BITS = 22  # the kernel's fixed point, and Pillow's

needs_kernel = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def weights(source: int, target: int) -> npt.NDArray[np.int64]:
    """The kernel's weights as a matrix [target, source]."""
    scale = source / target
    reach = max(1.0, scale)
    rows = np.zeros((target, source), dtype=np.int64)
    for place in range(target):
        center = (place + 0.5) * scale
        begin, end = max(0, int(center - reach + 0.5)), min(source, int(center + reach + 0.5))
        far = [abs((i - center + 0.5) * (1.0 / reach)) for i in range(begin, end)]
        exact = [1.0 - one if one < 1.0 else 0.0 for one in far]
        rows[place, begin:end] = [int(0.5 + one / sum(exact) * (1 << BITS)) for one in exact]
    return rows


def rounded(sums: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (sums + (1 << (BITS - 1))) >> BITS


def oracle(pixels: Pixels, height: int, width: int) -> Pixels:
    """The kernel's arithmetic, slowly: columns first, each pass rounded to 8 bits."""
    columns, rows = weights(pixels.shape[1], width), weights(pixels.shape[0], height)
    across = rounded(np.einsum("xw,hwc->hxc", columns, pixels.astype(np.int64)))
    return np.asarray(rounded(np.einsum("yh,hxc->yxc", rows, across)), dtype=np.uint8)


sizes = st.integers(1, 90)


@needs_kernel
@settings(deadline=None, max_examples=150)
@given(height=sizes, width=st.integers(4, 90), new_height=sizes, new_width=sizes)
@example(height=1, width=4, new_height=1, new_width=1)
@example(height=90, width=5, new_height=3, new_width=90)
def test_result_equals_its_arithmetic_and_is_close_to_pillow(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    pixels = noise(height, width)
    image = Image.fromarray(pixels)
    resized = resize_bilinear(image, new_height, new_width)
    assert resized.shape == (new_height, new_width, 3)
    assert resized.flags.c_contiguous
    assert resized.flags.writeable
    if (height, width) != (new_height, new_width):
        np.testing.assert_array_equal(resized, oracle(pixels, new_height, new_width))
    pillow = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR))
    assert np.abs(resized.astype(int) - pillow).max() <= 1


@needs_kernel
@pytest.mark.parametrize("size", [(960, 1280), (480, 640), (720, 1280), (600, 800)])
def test_a_landscape_image_gets_the_pixels_of_pillow(size: tuple[int, int]) -> None:
    """Its sides shrink alike; every version of Pillow resizes columns first there."""
    image = Image.fromarray(noise(*size))
    height, width = resized_size(*size, 336, 448)
    pillow = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_bilinear(image, height, width), pillow)


@needs_kernel
@pytest.mark.parametrize(
    "box",
    [(0, 0, 640, 480), (0, 0, 639.625, 479.25), (0.375, 0.75, 640, 480), (7, 9.5, 600.5, 470)],
)
@pytest.mark.parametrize("size", [(120, 160), (96, 128), (480, 640)])
def test_a_part_of_an_image_gets_the_pixels_of_pillow(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    image = Image.fromarray(noise(480, 640))
    pillow = image.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
    np.testing.assert_array_equal(resize_bilinear(image, *size, box=box), np.asarray(pillow))


@pytest.mark.parametrize("box", [(0, 0, 9.5, 9), (-1, 0, 9, 9), (4, 0, 4, 9), (0, 5, 9, 4)])
def test_a_part_that_is_not_in_the_image_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="not within an image of 9 x 9 pixels"):
        resize_bilinear(Image.new("RGB", (9, 9)), 3, 3, box=box)


@pytest.mark.parametrize("level", [0, 1, 127, 255])
@pytest.mark.parametrize("size", [(480, 640), (37, 41), (2000, 31)])
def test_a_uniform_image_stays_uniform(level: int, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.full((*size, 3), level, dtype=np.uint8))
    assert (resize_bilinear(image, 55, 70) == level).all()


def test_an_image_of_that_size_is_copied() -> None:
    pixels = noise(20, 30)
    np.testing.assert_array_equal(resize_bilinear(Image.fromarray(pixels), 20, 30), pixels)


@pytest.mark.parametrize("size", [(9, 1), (9, 3), (1, 1)])
def test_an_image_too_narrow_for_the_kernel_is_resized_by_pillow(
    size: tuple[int, int],
) -> None:
    image = Image.fromarray(noise(*size))
    expected = np.asarray(image.resize((6, 7), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_bilinear(image, 7, 6), expected)


@pytest.mark.parametrize("source", [(60, 80), (33, 44), (9, 3)], ids=["kernel", "copy", "Pillow"])
def test_the_result_is_written_to_the_given_array(source: tuple[int, int]) -> None:
    """Into part of a larger array, as in a slot, and not outside that part."""
    image = Image.fromarray(noise(*source))
    memory = np.full(33 * 44 * 3 + 20, 7, dtype=np.uint8)
    place = memory[10:-10].reshape(33, 44, 3)
    assert resize_bilinear(image, 33, 44, place) is place
    np.testing.assert_array_equal(place, resize_bilinear(image, 33, 44))
    assert (memory[:10] == 7).all()
    assert (memory[-10:] == 7).all()


@pytest.mark.parametrize(
    "place",
    [
        np.empty((33, 43, 3), np.uint8),
        np.empty((33, 44, 3), np.int8),
        np.empty((33, 88, 3), np.uint8)[:, ::2],
    ],
    ids=["shape", "type", "layout"],
)
def test_an_array_that_does_not_fit_is_refused(place: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="33 x 44 pixels cannot be written"):
        resize_bilinear(Image.fromarray(noise(60, 80)), 33, 44, place)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "size"), [("L", (8, 8)), ("RGBA", (8, 8)), ("RGB", (0, 8))])
def test_what_cannot_be_resized_is_named(mode: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} to {size[0]} x {size[1]}"):
        resize_bilinear(Image.new(mode, (9, 9)), *size)


@needs_kernel
def test_threads_resize_independently() -> None:
    images = [Image.fromarray(noise(60 + number, 80, number)) for number in range(40)]
    alone = [resize_bilinear(image, 33, 44) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: resize_bilinear(image, 33, 44), images))
    np.testing.assert_array_equal(alone, together)


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize._kernel, "tried", False)
    monkeypatch.setattr(resize._kernel, "library", None)


@pytest.mark.usefixtures("not_loaded")
def test_without_a_compiler_pillow_resizes_and_one_warning_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_sources: object) -> None:
        raise BuildError("no C++ compiler found")

    monkeypatch.setattr(resize, "load_any", fail)
    image = Image.fromarray(noise(40, 50))
    with pytest.warns(RuntimeWarning, match=r"resized by Pillow.*no C\+\+ compiler") as warned:
        resized = resize_bilinear(image, 20, 25)
    resize_bilinear(image, 21, 25)
    assert len(warned) == 1
    expected = np.asarray(image.resize((25, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized, expected)


@needs_kernel
@pytest.mark.usefixtures("not_loaded")
@pytest.mark.parametrize(
    "level",
    [
        pytest.param(level, marks=[] if level.name == "x86-64-v3" else [pytest.mark.slow])
        for level in prebuilt.levels()
        if level.needs <= prebuilt._features()
    ],
    ids=lambda level: level.name,
)
def test_every_processor_level_gives_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: prebuilt.Level
) -> None:
    from model.native.library import compile_library

    path = prebuilt._path(RESIZE, level, tmp_path)
    compile_library(RESIZE, level.flags, path)
    monkeypatch.setattr(prebuilt, "levels", lambda: (level,))
    monkeypatch.setattr(
        resize, "load_any", lambda sources: prebuilt.load_prebuilt(sources, tmp_path)
    )
    pixels = noise(77, 93)
    resized = resize_bilinear(Image.fromarray(pixels), 31, 45)
    assert resize._kernel.library is not None
    assert level.name in resize._kernel.library._name
    np.testing.assert_array_equal(resized, oracle(pixels, 31, 45))


def test_it_needs_no_torch() -> None:
    code = "import sys, model.images.resize as r; r.available(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
