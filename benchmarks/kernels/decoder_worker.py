"""One library that decodes one file, in an environment that has only it and numpy.

    python -m benchmarks.kernels.decoder_worker LIBRARY FILE

A side of `benchmarks.kernels.decoders`, see `benchmarks.model.turns`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.model.turns import take_turns

Decode = Callable[[], Any]  # to uint8 [h, w, 3], RGB or BGR


def service_decoder(data: bytes, suffix: str) -> Decode:
    """The service's decoder at full size, with all its checks."""
    del suffix
    from model.images.decode import ImageLimits, open_upright  # noqa: PLC0415 - as others
    from service.images.allocator import keep_freed_memory  # noqa: PLC0415

    keep_freed_memory()  # as decoder processes do
    limits = ImageLimits(1 << 30, 1 << 30)
    return lambda: open_upright(data, limits)[0]


def pillow_decoder(data: bytes, suffix: str) -> Decode:
    """Pillow, as a user calls it."""
    del suffix
    import io  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415 - as others

    return lambda: Image.open(io.BytesIO(data)).convert("RGB")


def opencv_decoder(data: bytes, suffix: str) -> Decode:
    """OpenCV, to BGR."""
    del suffix
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)
    encoded = np.frombuffer(data, np.uint8)
    return lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def imagecodecs_decoder(data: bytes, suffix: str) -> Decode:
    """imagecodecs: libjpeg-turbo, libpng and libwebp."""
    codecs = import_module("imagecodecs")
    decode = {"jpg": codecs.jpeg8_decode, "png": codecs.png_decode, "webp": codecs.webp_decode}
    return lambda: decode[suffix](data)


def spng_decoder(data: bytes, suffix: str) -> Decode | None:
    """pyspng: libspng, which decodes PNG only."""
    spng = import_module("pyspng")
    return (lambda: spng.load(data, format="RGB")) if suffix == "png" else None


def torchvision_decoder(data: bytes, suffix: str) -> Decode:
    """torchvision, to [3, h, w]."""
    del suffix
    torch, vision = import_module("torch"), import_module("torchvision.io")
    torch.set_num_threads(1)
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return lambda: vision.decode_image(encoded, vision.ImageReadMode.RGB)


LIBRARIES: dict[str, Callable[[bytes, str], Decode | None]] = {
    "service": service_decoder,
    "Pillow": pillow_decoder,
    "OpenCV": opencv_decoder,
    "imagecodecs": imagecodecs_decoder,
    "spng": spng_decoder,
    "torchvision": torchvision_decoder,
}


def main() -> None:
    """See the module."""
    library, file = sys.argv[1], Path(sys.argv[2])
    decode = LIBRARIES[library](file.read_bytes(), file.suffix[1:])
    if decode is None:
        take_turns({"decodes": False}, lambda: None)
        return
    pixels = np.asarray(decode())
    ready = {"decodes": True, "samples": pixels.size, "mean": float(pixels.mean())}
    del pixels
    take_turns(ready, decode)


if __name__ == "__main__":
    main()
