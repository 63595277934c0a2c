"""What benchmarks of the service send."""

from __future__ import annotations

import io

from PIL import Image


def flat_png() -> bytes:
    """A picture that costs next to nothing to decode and resize: the device is to be busy."""
    buffer = io.BytesIO()
    Image.new("RGB", (96, 4), (90, 120, 150)).save(buffer, "PNG")
    return buffer.getvalue()
