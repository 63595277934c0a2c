"""Two functions of the libtiff that Pillow is linked with, which Pillow does not offer."""

from __future__ import annotations

import ctypes
from contextlib import suppress

from PIL import _imaging


def silence() -> None:
    """Keeps libtiff from writing to stderr about each broken file; errors are returned as well."""
    with suppress(AttributeError, OSError):  # another build of Pillow
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            set_handler = getattr(library, name)
            set_handler.argtypes, set_handler.restype = (ctypes.c_void_p,), ctypes.c_void_p
            set_handler(None)


def has_codec(compression: int) -> bool:
    """Whether libtiff is built with a compression; True if that cannot be found out."""
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(_imaging.__file__)
        return bool(library.TIFFIsCODECConfigured(ctypes.c_uint16(compression)))
    return True
