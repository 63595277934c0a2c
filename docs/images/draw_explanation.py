"""Draws docs/images/explain.jpg: an explanation of the default model on a sample photo.

Run as `python docs/images/draw_explanation.py`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from service.cli import main

IMAGE = Path(__file__).with_name("explain.jpg")
PHOTO = Path(__file__).parents[1] / "samples" / "codes.jpg"
_QUALITY = 88


def draw() -> None:
    """Writes the figure."""
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder) / "figure.png"
        if main(["explain", str(PHOTO), "--device", "cpu", "--output", str(figure)]):
            sys.exit("the figure could not be drawn")
        Image.open(figure).save(IMAGE, quality=_QUALITY, optimize=True)


if __name__ == "__main__":
    draw()
