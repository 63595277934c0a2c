"""Draws an explanation: the points that a detection's query samples, and their weights.

A row for the decoder's cross-attention and one for the encoder's self-attention of the token that
the query began as. In each row: the whole image, then the part with the points twice, with and
without the key-aware weights. The colour of a point is its level, its area its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from model.explanation import Explanation, SampledPoints
from service.images.drawing import CLASS_COLOURS
from service.images.fonts import Font, drawable, load_font

_PANEL = 480  # pixels; width and height of a panel
_GAP = 16
_TITLE, _TEXT = 22, 15  # font sizes
_HEADER, _CAPTION, _FOOTER = 62, 54, 40  # heights
_BACKGROUND, _INK, _MUTED, _OUTSIDE = "#ffffff", "#101418", "#5a6470", "#c8ccd2"
_BOX_COLOUR = "#ffffff"
_LARGEST = 13.0  # radius of the point with the largest weight of a row, pixels of the panel
_SMALLEST = 1.0
_SMOOTH = 3  # points are drawn so many times larger, then reduced
_MARGIN = 0.08  # of the shown part, around the points
_MIN_PART = 24.0  # pixels of the image that a panel shows at least
_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _View:
    """A square part of the image as a panel shows it; beyond the image it is grey."""

    left: float
    top: float
    side: float  # pixels of the image

    @property
    def scale(self) -> float:
        """Pixels of the panel for each pixel of the image."""
        return _PANEL / self.side

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the image is in the panel."""
        return (x - self.left) * self.scale, (y - self.top) * self.scale


def draw_explanation(image: Image.Image, explanation: Explanation) -> Image.Image:
    """Draws an explanation next to its image.

    Args:
        image: RGB, of the size that the explanation refers to.
        explanation: of one detection.

    Returns:
        A new RGB image: title, two rows of three panels, and the legend of the levels.
    """
    rows = (explanation.decoder, explanation.encoder)
    width = 3 * _PANEL + 4 * _GAP
    height = _HEADER + len(rows) * (_CAPTION + _PANEL + _GAP) + _FOOTER
    figure = Image.new("RGB", (width, height), _BACKGROUND)
    writer = _Writer(figure)
    _write_header(writer, explanation)
    top = _HEADER
    cut = cache(partial(_cut, image))  # a large image takes time, and most views are shown twice
    for points in rows:
        _draw_row(figure, writer, image, cut, explanation, points, top)
        top += _CAPTION + _PANEL + _GAP
    _write_legend(writer, explanation, top)
    return figure


class _Writer:
    """Writes text into the figure."""

    def __init__(self, figure: Image.Image) -> None:
        self.canvas = ImageDraw.Draw(figure)
        self._fonts: dict[tuple[object, int], Font] = {}

    def write(self, place: tuple[float, float], text: str, size: int, colour: str = _INK) -> float:
        """Writes a line at its upper left corner; returns its width in pixels."""
        try:
            text, path = drawable(text)
        except LookupError:
            text, path = text.encode("ascii", "replace").decode(), None
        key = (path, size)
        if key not in self._fonts:
            self._fonts[key] = load_font(path, size)
        self.canvas.text(place, text, fill=colour, font=self._fonts[key], anchor="la")
        return float(self.canvas.textlength(text, font=self._fonts[key]))


def _write_header(writer: _Writer, explanation: Explanation) -> None:
    title = f"{explanation.label} {explanation.score:.2f}"
    writer.write((_GAP, 10), title, _TITLE)
    token = f"token of level {explanation.token_level}"
    stride = explanation.strides[explanation.token_level]
    detail = f"query {explanation.query}, selected from a {token} (stride {stride})"
    writer.write((_GAP, 38), detail, _TEXT, _MUTED)


def _draw_row(  # noqa: PLR0913, PLR0917 - the parts of a figure
    figure: Image.Image,
    writer: _Writer,
    image: Image.Image,
    cut: Callable[[_View], Image.Image],
    explanation: Explanation,
    points: SampledPoints,
    top: int,
) -> None:
    equal = np.full(points.weights.shape, 1 / math.prod(points.weights.shape[1:]))
    if points.key_aware:
        captions = (
            ("without keys: equal weights", "the same points"),
            ("key-aware weights", "softmax of query . key at the points"),
        )
        panels = [equal, points.weights]
    else:
        captions = (
            ("plain weights", "predicted from the query, without keys"),
            ("equal weights, to compare", "this model has no key-aware weights"),
        )
        panels = [points.weights, equal]
    name = "cross-attention of the query" if points.stage == "decoder" else "the query's token"
    heads, levels, each = points.weights.shape
    first = (
        f"{points.stage}, layer {points.layer} of {points.num_layers}: {name}",
        f"{heads} heads x {levels} levels x {each} points",
    )
    whole, part = _whole(image), _part(points, explanation.box_xyxy, image)
    views = ((whole, points.weights), (part, panels[0]), (part, panels[1]))
    largest = float(points.weights.max())
    for number, ((view, weights), caption) in enumerate(
        zip(views, (first, *captions), strict=True)
    ):
        left = _GAP + number * (_PANEL + _GAP)
        writer.write((left, top + 4), caption[0], _TEXT)
        shares = weights.sum(axis=2).mean(axis=0)
        text = caption[1] if number == 0 else f"{caption[1]}: {_percentages(shares)}"
        writer.write((left, top + 26), text, _TEXT - 2, _MUTED)
        panel = _draw_panel(cut(view), view, explanation, points, weights, largest)
        figure.paste(panel, (left, top + _CAPTION))


def _draw_panel(  # noqa: PLR0913, PLR0917 - the parts of a panel
    shown: Image.Image,
    view: _View,
    explanation: Explanation,
    points: SampledPoints,
    weights: npt.NDArray[np.float64],
    largest: float,
) -> Image.Image:
    panel = shown.convert("RGBA")
    side = _PANEL * _SMOOTH
    layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas = ImageDraw.Draw(layer)
    corners = _rectangle(view, explanation.box_xyxy)
    for colour, width in ((_INK, 6), (_BOX_COLOUR, 3)):
        canvas.rectangle(corners, outline=colour, width=width * _SMOOTH)
    if points.stage == "encoder":
        _draw_cross(canvas, view, points.reference)
    order = np.argsort(-weights, axis=None)  # small points on top of large ones
    for head, level, point in zip(*np.unravel_index(order, weights.shape), strict=True):
        share = weights[head, level, point] / largest
        radius = max(_SMALLEST, _LARGEST * math.sqrt(min(1.0, share))) * _SMOOTH
        x, y = (value * _SMOOTH for value in view.place(*points.xy[head, level, point]))
        opacity = round(255 * min(1.0, 0.45 + 0.5 * share))
        fill = (*_rgb(CLASS_COLOURS[level % len(CLASS_COLOURS)]), opacity)
        circle = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(circle, fill=fill, outline=(16, 20, 24, opacity), width=_SMOOTH)
    panel.alpha_composite(layer.resize((_PANEL, _PANEL), Image.Resampling.BOX))
    return panel.convert("RGB")


def _draw_cross(canvas: ImageDraw.ImageDraw, view: _View, place: Sequence[float]) -> None:
    """Marks the centre of a token."""
    x, y = (value * _SMOOTH for value in view.place(place[0], place[1]))
    for colour, width in ((_INK, 5), (_BOX_COLOUR, 3)):
        arm = 12 * _SMOOTH
        canvas.line((x - arm, y, x + arm, y), fill=colour, width=width * _SMOOTH)
        canvas.line((x, y - arm, x, y + arm), fill=colour, width=width * _SMOOTH)


def _rectangle(view: _View, box: _Box) -> list[float]:
    left, top = view.place(box[0], box[1])
    right, bottom = view.place(box[2], box[3])
    return [value * _SMOOTH for value in (left, top, max(left, right), max(top, bottom))]


def _whole(image: Image.Image) -> _View:
    """The whole image, centred."""
    side = max(image.size)
    return _View((image.width - side) / 2, (image.height - side) / 2, side)


def _part(points: SampledPoints, box: _Box, image: Image.Image) -> _View:
    """The square around the box and the points with weight, as far as they are in the image."""
    weighty = points.weights > points.weights.max() * 0.02
    xs = np.clip(np.append(points.xy[..., 0][weighty], (box[0], box[2])), 0, image.width)
    ys = np.clip(np.append(points.xy[..., 1][weighty], (box[1], box[3])), 0, image.height)
    side = max(float(np.ptp(xs)), float(np.ptp(ys))) * (1 + 2 * _MARGIN)
    side = min(max(side, _MIN_PART), float(max(image.size)))
    centre_x, centre_y = (xs.max() + xs.min()) / 2, (ys.max() + ys.min()) / 2
    return _View(float(centre_x) - side / 2, float(centre_y) - side / 2, side)


def _cut(image: Image.Image, view: _View) -> Image.Image:
    """The part of the image that a view shows, in the size of a panel."""
    panel = Image.new("RGB", (_PANEL, _PANEL), _OUTSIDE)
    left, top = max(0.0, view.left), max(0.0, view.top)
    right = min(float(image.width), view.left + view.side)
    bottom = min(float(image.height), view.top + view.side)
    if right <= left or bottom <= top:
        return panel
    size = tuple(max(1, round(length * view.scale)) for length in (right - left, bottom - top))
    part = image.resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))  # type: ignore[arg-type]
    panel.paste(part, tuple(round(value) for value in view.place(left, top)))  # type: ignore[arg-type]
    return panel


def _write_legend(writer: _Writer, explanation: Explanation, top: int) -> None:
    left: float = _GAP
    for level, stride in enumerate(explanation.strides):
        colour = CLASS_COLOURS[level % len(CLASS_COLOURS)]
        writer.canvas.ellipse((left, top + 6, left + 16, top + 22), fill=colour, outline=_INK)
        left += 24
        left += writer.write((left, top + 5), f"level {level}, stride {stride}", _TEXT) + 28
    writer.write(
        (left, top + 5),
        "area: weight in its head; a cross marks the token; percentages: the weight of each level",
        _TEXT,
        _MUTED,
    )


def _percentages(shares: npt.NDArray[np.float64]) -> str:
    return "levels " + " / ".join(f"{100 * share:.0f}" for share in shares) + " %"


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
