"""TIFF files that tifffile writes: depths, layouts, byte orders, predictors."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from tests.support.corpus.scene import (
    ROUNDED,
    UINT8,
    CorpusFile,
    alpha,
    colours,
    grey,
    integers,
    shown,
)


def samples_of_type(kind: str) -> dict[str, tuple[npt.NDArray[np.generic], UINT8]]:
    """The scene in a type, by layout of the colours: [h, w] or [h, w, samples]."""
    layers = {
        "grey": grey(),
        "white is zero": 1 - grey(),
        "RGB": colours(),
        "RGBA": np.dstack([colours(), alpha()]),
        "RGBX": np.dstack([colours(), alpha()]),
        "RGBa": np.dstack([colours() * alpha()[..., np.newaxis], alpha()]),
        "grey and alpha": np.dstack([grey(), alpha()]),
        "CMYK": np.dstack([1 - colours(), np.zeros_like(grey())]),
    }
    seen = {name: shown(integers(grey(), 8)) for name in ("grey", "white is zero")}
    seen |= {name: shown(integers(colours(), 8)) for name in ("RGB", "RGBX", "CMYK")}
    seen |= {name: shown(integers(colours(), 16), 16, alpha()) for name in ("RGBA", "RGBa")}
    seen["grey and alpha"] = shown(integers(grey(), 16), 16, alpha())
    bits = np.dtype(kind).itemsize * 8
    converted = {
        name: layer.astype(kind) if kind[0] == "f" else integers(layer, bits).astype(kind)
        for name, layer in layers.items()
    }
    return {name: (converted[name], seen[name]) for name in layers}


PHOTOMETRICS: dict[str, tuple[str, tuple[int, ...]]] = {
    "grey": ("minisblack", ()),
    "white is zero": ("miniswhite", ()),
    "RGB": ("rgb", ()),
    "RGBA": ("rgb", (2,)),
    "RGBX": ("rgb", (0,)),
    "RGBa": ("rgb", (1,)),
    "grey and alpha": ("minisblack", (2,)),
    "CMYK": ("separated", ()),
}


def tifffile_bytes(samples: npt.NDArray[np.generic], colour: str, **options: Any) -> bytes:
    """One image; `options` as for `tifffile.imwrite`."""
    photometric, extra = PHOTOMETRICS[colour]
    if options.get("planarconfig") == "separate":
        samples = np.moveaxis(samples, -1, 0)
    encoded = io.BytesIO()
    tifffile.imwrite(
        encoded,
        samples,
        photometric=photometric,
        extrasamples=extra or None,
        metadata=None,
        **options,
    )
    return encoded.getvalue()


def tifffile_files() -> Iterator[CorpusFile]:
    """Types, colours and layouts."""
    layouts: list[dict[str, Any]] = [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
        {"tile": (16, 32), "compression": "zlib"},
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 5},
        {"rowsperstrip": 1, "compression": "zlib", "bigtiff": True},
        {"compression": "packbits"},
    ]
    kinds = ("uint8", "uint16", "uint32", "float16", "float32", "float64")
    for kind in kinds:
        for colour, (samples, expected) in samples_of_type(kind).items():
            for layout, planar, order in itertools.product(
                layouts, ("contig", "separate"), ("<", ">")
            ):
                if samples.ndim == 2 and planar == "separate":
                    continue
                options = layout | {"byteorder": order}
                if samples.ndim > 2:
                    options["planarconfig"] = planar
                name = f"TIFF, {kind}, {colour}, {options}"
                # Without a type's limit, the brightest sample is white.
                try:
                    data = tifffile_bytes(samples, colour, **options)
                except (ValueError, KeyError, TypeError, ImportError):
                    continue
                yield CorpusFile(name, data, expected, ROUNDED)
