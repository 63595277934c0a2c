"""The decoders of HEIF files: AVIF in Pillow, HEIC in `pillow-heif` (the extra `heic`)."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from model.images.errors import UnsupportedImage

# By Pillow's name of the format: the module with the decoder, and how to get it.
_MODULES = {
    "AVIF": ("PIL._avif", "a build of Pillow with libavif"),
    "HEIF": ("pillow_heif", "the extra heic: pip install 'lite-detr-service[heic]'"),
}
_NAMES = {"AVIF": "AVIF", "HEIF": "HEIC"}


@cache
def has_decoder(name: str) -> bool:
    """Whether the decoder of "AVIF" or "HEIF" is installed; does not load it."""
    return find_spec(_MODULES[name][0]) is not None


def check_decoder(name: str) -> None:
    """Refuses an image without a decoder.

    Raises:
        UnsupportedImage: if the decoder of "AVIF" or "HEIF" is not installed.
    """
    if not has_decoder(name):
        raise UnsupportedImage(
            f"{_NAMES[name]} images are not supported by this installation (it lacks "
            f"{_MODULES[name][1]}); send JPEG"
        )


def register() -> None:
    """Registers the decoders with Pillow; each decodes in as few threads as it can."""
    from PIL import AvifImagePlugin  # noqa: PLC0415

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    if has_decoder("HEIF"):
        import pillow_heif  # noqa: PLC0415

        pillow_heif.register_heif_opener(
            thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
        )
