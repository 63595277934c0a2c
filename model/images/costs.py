"""What decoding an image takes, by its format, its size and the length of the file."""

from __future__ import annotations

from model.images.limits import Cost

# Peak of decoding in any mode: the decoder's buffers, the image, and its converted or rotated copy,
# or two copies for resizing. Pillow's decoder of WebP keeps two canvases and returns a third.
_MEMORY_BYTES_PER_PIXEL = {
    "JPEG": 12,
    "PNG": 12,
    "WEBP": 20,
    "WEBP, still": 12,
    "BMP": 12,
    "GIF": 12,
    "AVIF": 16,
    "HEIF": 16,
}
# Seconds of one core per pixel and per byte, measured with photographs and noise; others take less.
_SECONDS = {
    "JPEG": (6e-9, 12e-9),
    "PNG": (20e-9, 5e-9),
    "WEBP": (20e-9, 60e-9),
    "WEBP, still": (20e-9, 50e-9),
    "BMP": (5e-9, 0.0),
    "GIF": (6e-9, 5e-9),
    "AVIF": (15e-9, 80e-9),
    "HEIF": (25e-9, 80e-9),
}
_PART_OF_A_PASS = 0.1  # that each scan of a progressive JPEG adds
_COPY_BYTES_PER_PIXEL = 4  # of an image that is kept to be compared


def decoding_cost(  # noqa: PLR0913 - of an image
    name: str,
    num_pixels: int,
    num_bytes: int,
    *,
    passes: int = 1,
    times: int = 1,
    seconds_per_pixel: float = 0.0,
) -> Cost:
    """Estimates the cost of decoding an image at its full size.

    Args:
        name: of the format; "WEBP, still" is decoded by `fast_webp`.
        num_pixels: that are decoded.
        num_bytes: of the file.
        passes: over all pixels.
        times: that the file is decoded, to compare the results.
        seconds_per_pixel: in addition, see `ImageSource`.
    """
    bytes_per_pixel = _MEMORY_BYTES_PER_PIXEL[name] + _COPY_BYTES_PER_PIXEL * (times > 1)
    per_pixel, per_byte = _SECONDS[name]
    seconds = num_pixels * per_pixel + num_bytes * per_byte
    seconds *= times * (1 + _PART_OF_A_PASS * (passes - 1))
    return Cost(num_pixels * bytes_per_pixel, seconds + num_pixels * seconds_per_pixel)
