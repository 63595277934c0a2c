"""Pillow's global state: its decoders, its limits and its warnings."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from types import ModuleType

from PIL import Image

from model.images import heif_decoders, libtiff
from model.images.pixel_memory import store_images_in_one_block


@cache
def prepare_pillow() -> tuple[ModuleType, ...]:
    """Registers the accepted decoders and disables Pillow's own pixel limit.

    That limit is one per process and warns before it refuses; `ImageLimits` replaces it. Importing
    the plugins by name keeps Pillow from loading all others.
    """
    from PIL import (  # noqa: PLC0415
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    Image.MAX_IMAGE_PIXELS = None
    # Pillow's own reader of uncompressed TIFF takes subsampled and 16-bit planes for other pixels.
    TiffImagePlugin.READ_LIBTIFF = True
    libtiff.silence()
    heif_decoders.register()
    store_images_in_one_block()
    # Odd metadata in a client's image is not worth a line in the log.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    return (
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )
