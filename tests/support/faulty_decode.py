"""A decoder that does what the end of a file says: the fake backend's decoder processes use it.

A file that ends with one of the marks below crashes, hangs or exhausts its decoder. Image formats
allow bytes behind the image, so the same file is a good image for every other decoder.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from model.images import decode
from model.images.decode import Cost, DecodedImage, ImageLimits, InputRule, JpegDecoding
from service.decoding.worker import Place

CRASH, CRASH_ONCE, HANG, EXHAUST, RAISE = (
    f"#decoder-{what}".encode() for what in ("crash", "crash-once", "hang", "exhaust", "raise")
)
_MARK_BYTES = 200


def decode_image(  # noqa: PLR0913, PLR0917 - as the decoder
    data: memoryview,
    config: InputRule,
    limits: ImageLimits,
    granted: Cost | None,
    place: Place,
    jpeg_decoding: JpegDecoding,
) -> DecodedImage:
    """Meets the file's fault, if it has one, then decodes."""
    mark, _, argument = bytes(data[-_MARK_BYTES:]).partition(b"#decoder-")[2].partition(b"=")
    match mark:
        case b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"crash-once":
            file = Path(os.fsdecode(argument))
            if not file.exists():
                file.touch()
                os.kill(os.getpid(), signal.SIGSEGV)
        case b"hang":
            threading.Event().wait()
        case b"wait-while":
            decode.open_upright(data, limits, granted)  # a costly image is returned at once
            while Path(os.fsdecode(argument)).exists():
                time.sleep(0.005)
        case b"exhaust":
            np.ones(1 << 40, dtype=np.uint8)
        case b"raise":
            raise KeyError("a bug of the decoder")
    return decode.decode_image(data, config, limits, granted, place, jpeg_decoding)


def crash_once(marker: Path) -> bytes:
    """The end of a file whose first decoding crashes; `marker` remembers it."""
    return CRASH_ONCE + b"=" + os.fsencode(marker)


def wait_while(gate: Path) -> bytes:
    """The end of a file whose decoding waits while a file exists."""
    return b"#decoder-wait-while=" + os.fsencode(gate)
