"""Files of every kind that common programs write are decoded rightly, or refused by their kind.

Each program's files are compared with what was put into them, or with what another program reads.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from service.errors import DetectionError, UnsupportedImage
from tests.support.corpus.imagemagick_files import imagemagick, imagemagick_files
from tests.support.corpus.libtiff_files import libtiff_files
from tests.support.corpus.opencv_files import opencv_files
from tests.support.corpus.own_files import own_files
from tests.support.corpus.pillow_files import pillow_files
from tests.support.corpus.scene import UINT8, CorpusFile
from tests.support.corpus.tifffile_files import tifffile_files
from tests.support.decoder_images import upright

# Every kind that is refused; what a program writes otherwise is decoded.
REFUSED = re.compile(
    r"this kind of TIFF is not supported: .*"
    r"(compression 34887"  # LERC
    r"|WebP compression"  # Pillow's libtiff is built without it
    r"|palette, . samples per pixel \(float"
    r"|(grey|RGB|separated colours \(CMYK\)), [245] samples .*(JPEG|CCITT .*) compression"
    r"|YCbCr, [34] samples .*JPEG compression"
    r"|palette, 2 samples .*)"
    r"; send 8-bit RGB"
)


def check(files: Iterable[CorpusFile], at_least: int) -> None:
    """Decodes every file; fails with a list of all that are neither right nor refused by kind."""
    wrong, right, refused = [], 0, 0
    for file in files:
        try:
            pixels = upright(file.data)
        except UnsupportedImage as error:
            refused += 1
            if not REFUSED.fullmatch(error.detail):
                wrong.append(f"{file.name}: {error.detail}")
            continue
        except DetectionError as error:
            wrong.append(f"{file.name}: {error.code}: {error.detail}")
            continue
        problem = difference(pixels, file)
        if problem:
            wrong.append(f"{file.name}: {problem}")
        right += not problem
    assert not wrong, f"{len(wrong)} of {right + refused + len(wrong)}:\n" + "\n".join(wrong)
    assert right >= at_least
    assert refused < right / 4


def difference(pixels: UINT8, file: CorpusFile) -> str | None:
    """How the pixels differ from the expected ones, or from those that OpenCV reads."""
    expected = read_by_opencv(file.data) if file.expected is None else file.expected
    if expected is None:
        return None
    if pixels.shape != expected.shape:
        return f"{pixels.shape} instead of {expected.shape}"
    largest = int(np.abs(pixels.astype(int) - expected).max())
    return f"differs by {largest}" if largest > file.tolerance else None


def read_by_opencv(data: bytes) -> UINT8 | None:
    """The 8-bit RGB of a file, on white; None if OpenCV does not read it."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        return None
    if image.ndim == 2:
        return np.repeat(image[..., np.newaxis], 3, axis=-1)
    if image.shape[-1] == 4:
        alpha = image[..., 3:] / 255
        return np.rint(image[..., 2::-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("files", "at_least"),
    [(pillow_files, 370), (opencv_files, 300), (tifffile_files, 1100), (own_files, 140)],
    ids=["Pillow", "OpenCV", "tifffile", "every depth"],
)
def test_files_of_a_library(files: Callable[[], Iterable[CorpusFile]], at_least: int) -> None:
    check(files(), at_least)


@pytest.mark.skipif(shutil.which("tiffcp") is None, reason="tiffcp (libtiff-tools) is missing")
@pytest.mark.slow
def test_files_of_libtiff(tmp_path: Path) -> None:
    check(libtiff_files(tmp_path), 500)


@pytest.mark.slow
@pytest.mark.skipif(imagemagick() is None, reason="ImageMagick is missing")
def test_files_of_imagemagick(tmp_path: Path) -> None:
    check(imagemagick_files(tmp_path), 380)
