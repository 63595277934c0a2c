"""Files that OpenCV writes: depths, channels and the parameters of each format."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from tests.support.corpus.scene import (
    LOSSY,
    ROUNDED,
    UINT8,
    CorpusFile,
    alpha,
    colours,
    grey,
    integers,
    shown,
)

_TIFF_COMPRESSIONS = (1, 5, 7, 8, 32773, 32946, 34925, 50000, 50001)


def _options() -> Iterator[tuple[str, list[int]]]:
    for compression in _TIFF_COMPRESSIONS:
        yield ".tiff", [cv2.IMWRITE_TIFF_COMPRESSION, compression]
        for predictor in (2, 3):
            yield (
                ".tiff",
                [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, predictor],
            )
    for level, strategy in itertools.product((0, 1, 9), range(5)):
        yield ".png", [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
    yield ".png", [cv2.IMWRITE_PNG_BILEVEL, 1]
    for progressive, optimised, restart in itertools.product((0, 1), (0, 1), (0, 1)):
        yield (
            ".jpg",
            [
                *(cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive),
                *(cv2.IMWRITE_JPEG_OPTIMIZE, optimised, cv2.IMWRITE_JPEG_RST_INTERVAL, restart),
            ],
        )
    for sampling in (0x111111, 0x211111, 0x221111, 0x121111, 0x411111):
        yield ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    yield ".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]  # lossless
    yield ".webp", [cv2.IMWRITE_WEBP_QUALITY, 95]
    yield ".bmp", []
    yield ".gif", []


def _images() -> dict[str, tuple[npt.NDArray[np.generic], UINT8]]:
    """Images in OpenCV's order (blue first), with what they show."""
    images: dict[str, tuple[npt.NDArray[np.generic], UINT8]] = {}
    blue_first = colours()[..., ::-1]
    for kind in ("uint8", "uint16", "int32", "float32", "float64"):
        bits = 16 if kind == "int32" else np.dtype(kind).itemsize * 8
        is_float = kind.startswith("float")

        def convert(layer: npt.NDArray[np.float64], kind: str = kind, bits: int = bits) -> Any:
            return layer.astype(kind) if kind[0] == "f" else integers(layer, bits).astype(kind)

        deep = 8 if is_float else bits
        images[f"{kind} grey"] = (convert(grey()), shown(integers(grey(), deep), deep))
        images[f"{kind} BGR"] = (convert(blue_first), shown(integers(colours(), deep), deep))
        if kind in {"uint8", "uint16"}:
            images[f"{kind} BGRA"] = (
                convert(np.dstack([blue_first, alpha()])),
                shown(integers(colours(), 16), 16, alpha()),
            )
    return images


def _has_type(suffix: str, name: str) -> bool:
    """Whether the format has the samples of an image; OpenCV clips or drops others."""
    if suffix == ".tiff" or (suffix == ".png" and "uint16" in name):
        return True
    return "uint8" in name and not (suffix == ".jpg" and "BGRA" in name)


def opencv_files() -> Iterator[CorpusFile]:
    """Every image with every option, where the format has it."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    for (name, (image, expected)), (suffix, options) in itertools.product(
        _images().items(), _options()
    ):
        if not _has_type(suffix, name):
            continue
        try:
            written, data = cv2.imencode(suffix, image, options)
        except cv2.error:
            continue
        if not written:
            continue
        is_lossy = suffix == ".jpg" or 95 in options or 7 in options or 50001 in options
        is_reduced = suffix == ".gif" or cv2.IMWRITE_PNG_BILEVEL in options[:1]
        yield CorpusFile(
            f"OpenCV, {suffix}, {name}, {options}",
            data.tobytes(),
            None if is_reduced else expected,
            LOSSY if is_lossy else ROUNDED,
        )
