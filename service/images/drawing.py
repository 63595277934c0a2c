"""Draws boxes and labels on the original image at its full size.

Used by the adapters for `format=image` and by `lite-detr detect --save`. CPU-bound: the
service runs it in a decoder process.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from model.detections import Detections
from model.images.decode import ImageLimits, open_upright
from service.images.fonts import Font, drawable, load_font

# Distinguishable for colour-blind people, and bright enough for black text. The page of
# `service/rest` uses the same list.
CLASS_COLOURS = (
    "#ffb000",
    "#35c2ff",
    "#ff6e8a",
    "#3ddc84",
    "#c79bff",
    "#ffe14d",
    "#ff8f3f",
    "#7fe0d4",
    "#f48be0",
    "#b6d94c",
)
_DARK = "#101418"  # text, and the outline of boxes on a background of their own colour
_LOSSY_FORMATS = frozenset({"JPEG", "WEBP", "AVIF", "HEIF"})
_JPEG_QUALITY = 92

# Line width and font size as fractions of the image's long side, with minimums in pixels.
_LINES_PER_SIDE, _MIN_LINE = 320, 1
_FONTS_PER_SIDE, _MIN_FONT = 48, 11
_SMALLEST_FONT = 7  # a label that would need a smaller font is left out

_Rect = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive


@dataclass(frozen=True)
class RenderedImage:
    """An encoded image and its media type ("image/jpeg" or "image/png")."""

    data: bytes
    media_type: str


def render_detections(
    data: bytes | memoryview,
    detections: Detections,
    label_names: Sequence[str],
    limits: ImageLimits,
) -> RenderedImage:
    """Decodes an image, draws detections on it and encodes it again.

    Args:
        data: the encoded image.
        detections: boxes in pixels, after EXIF rotation.
        label_names: indexed by class id.
        limits: as for `decode_image`.

    Returns:
        An image of the full size: JPEG if the source is JPEG, WebP, AVIF or HEIC, else PNG.

    Raises:
        InvalidImage, UnsupportedImage, ImageTooLarge: as for `open_upright`.
    """
    image, source_format = open_upright(data, limits)
    draw_detections(image, detections, label_names)
    encoded = io.BytesIO()
    if source_format in _LOSSY_FORMATS:
        image.save(encoded, "JPEG", quality=_JPEG_QUALITY)
        return RenderedImage(encoded.getvalue(), "image/jpeg")
    # A low level: for photos a higher one saves little and takes seconds.
    image.save(encoded, "PNG", compress_level=1)
    return RenderedImage(encoded.getvalue(), "image/png")


def draw_detections(image: Image.Image, detections: Detections, label_names: Sequence[str]) -> None:
    """Draws boxes with class names and scores into an RGB image, in place.

    Args:
        image: mode RGB, of the size that the boxes refer to.
        detections: best score first; drawn in reverse, so that the best are on top.
        label_names: indexed by class id.
    """
    canvas = ImageDraw.Draw(image)
    long_side = max(image.size)
    line = max(_MIN_LINE, round(long_side / _LINES_PER_SIDE))
    boxes = [_pixel_box(box, image.size) for box in detections.boxes_xyxy.tolist()]
    classes = detections.labels.tolist()
    for box, class_id in zip(reversed(boxes), reversed(classes), strict=True):
        _draw_box(canvas, box, class_colour(class_id), line)
    labels = _LabelWriter(canvas, image.size)
    for box, class_id, score in zip(boxes, classes, detections.scores.tolist(), strict=True):
        name, font = _drawable_name(label_names, class_id)
        labels.write(f"{name} {score:.2f}", font, box, class_colour(class_id))


def class_colour(class_id: int) -> str:
    """Returns the colour of a class, "#rrggbb"."""
    return CLASS_COLOURS[class_id % len(CLASS_COLOURS)]


def _drawable_name(label_names: Sequence[str], class_id: int) -> tuple[str, Path | None]:
    """Returns the name of a class and the font that has its characters.

    If no font has them, the name is the number of the class, instead of a row of empty boxes.
    """
    if not 0 <= class_id < len(label_names):
        return str(class_id), None
    try:
        return drawable(label_names[class_id])
    except LookupError:
        return f"class {class_id}", None


def _pixel_box(box: Sequence[float], size: tuple[int, int]) -> _Rect:
    """Rounds a box to whole pixels inside the image, at least one pixel large."""
    width, height = size
    left = min(max(round(min(box[0], box[2])), 0), width - 1)
    top = min(max(round(min(box[1], box[3])), 0), height - 1)
    right = min(max(round(max(box[0], box[2])), left + 1), width)
    bottom = min(max(round(max(box[1], box[3])), top + 1), height)
    return left, top, right, bottom


def _draw_box(canvas: ImageDraw.ImageDraw, box: _Rect, colour: str, line: int) -> None:
    left, top, right, bottom = box
    border = max(1, line // 3)
    canvas.rectangle(
        (left - border, top - border, right - 1 + border, bottom - 1 + border),
        outline=_DARK,
        width=line + 2 * border,
    )
    canvas.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line)


class _LabelWriter:
    """Writes labels into one image; a label avoids the earlier ones."""

    def __init__(self, canvas: ImageDraw.ImageDraw, image_size: tuple[int, int]) -> None:
        self._canvas = canvas
        self._image_size = image_size
        self._taken: list[_Rect] = []
        # By file and size; loading one takes milliseconds.
        self._fonts: dict[tuple[Path | None, int], Font] = {}

    def write(self, text: str, font: Path | None, box: _Rect, colour: str) -> None:
        """Writes the label of a box: smaller if the image is too narrow, else not at all."""
        size = max(_MIN_FONT, round(max(self._image_size) / _FONTS_PER_SIDE))
        while size >= _SMALLEST_FONT:
            loaded = self._font(font, size)
            wide, high = self._label_size(text, loaded, size)
            if wide <= self._image_size[0] and high <= self._image_size[1]:
                place = _place_label(box, (wide, high), self._image_size, self._taken)
                self._taken.append(place)
                self._write_at(place, text, loaded, colour, _label_pad(size))
                return
            size -= 1

    def _write_at(self, place: _Rect, text: str, font: Font, colour: str, pad: int) -> None:
        left, top, right, bottom = place
        self._canvas.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        anchor = (left + pad, (top + bottom) / 2)
        self._canvas.text(anchor, text, fill=_DARK, font=font, anchor="lm")

    def _label_size(self, text: str, font: Font, size: int) -> tuple[int, int]:
        pad = 2 * _label_pad(size)
        return round(self._canvas.textlength(text, font=font)) + pad, round(size * 1.15) + pad

    def _font(self, path: Path | None, size: int) -> Font:
        if (path, size) not in self._fonts:
            self._fonts[path, size] = load_font(path, size)
        return self._fonts[path, size]


def _label_pad(font_size: int) -> int:
    return max(1, font_size // 5)


def _place_label(
    box: _Rect, label_size: tuple[int, int], image_size: tuple[int, int], taken: list[_Rect]
) -> _Rect:
    """Returns a place above, below or inside the box: the first free one, else the first."""
    (left, top, right, bottom), (wide, high) = box, label_size
    candidates = []
    for x, y in (
        (left, top - high),
        (left, bottom),
        (left, top),
        (right - wide, top - high),
        (right - wide, bottom),
        (left, bottom - high),
    ):
        x_inside = min(max(x, 0), image_size[0] - wide)
        y_inside = min(max(y, 0), image_size[1] - high)
        candidates.append((x_inside, y_inside, x_inside + wide, y_inside + high))
    free = (place for place in candidates if not any(_overlap(place, other) for other in taken))
    return next(free, candidates[0])


def _overlap(one: _Rect, other: _Rect) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
