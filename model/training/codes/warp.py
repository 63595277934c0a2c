"""Places flat sheets in an image: rotation, perspective, curl, waves."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from model.training.codes.common import Bytes, Float, chance, uniform
from model.training.codes.labels import Mark, Sheet

_OUTLINE_POINTS = 24


@dataclass(frozen=True)
class Bend:
    """The bend of a sheet, applied before the perspective.

    Sheet coordinates are scaled so that the bent axis runs over -1..1.

    Attributes:
        vertical: Whether the sheet bends along y instead of along x.
        arc: Half angle of the cylinder in radians; 0 leaves it flat.
        bow: Sideways shift that goes with the arc, as a share of half the bent side.
        wave: Height of paper waves as a share of half the bent side.
        turns: Waves' angle over half a side, radians.
        phase: Phase of the waves, radians.
    """

    vertical: bool = False
    arc: float = 0.0
    bow: float = 0.0
    wave: float = 0.0
    turns: float = 0.0
    phase: float = 0.0

    @property
    def flat(self) -> bool:
        """Whether the sheet is flat."""
        return self.arc == 0.0 and self.wave == 0.0

    def _shift(self, along: Float) -> Float:
        out = self.wave * np.sin(along * self.turns + self.phase)
        return np.asarray(out + self.bow * (np.cos(along * self.arc) - 1), np.float32)

    def forward(self, points: Float, size: tuple[int, int]) -> Float:
        """Bends sheet points.

        Args:
            points: [..., 2] x, y in sheet pixels.
            size: Sheet width and height in pixels.

        Returns:
            [..., 2] bent points in the same frame.
        """
        a, b = (1, 0) if self.vertical else (0, 1)
        half = size[a] / 2
        along = np.asarray((points[..., a] - half) / half, np.float32)
        out = np.array(points, np.float32)
        if self.arc:
            out[..., a] = half + half * np.sin(along * self.arc) / np.sin(self.arc)
        out[..., b] = points[..., b] + half * self._shift(along)
        return out

    def backward(self, x: Float, y: Float, size: tuple[int, int]) -> tuple[Float, Float]:
        """Undoes `forward` for coordinate planes x, y of any shape."""
        axes = [y, x] if self.vertical else [x, y]
        half = (size[1] if self.vertical else size[0]) / 2
        along = (axes[0] - half) / half
        beyond = np.abs(along) > 1
        if self.arc:
            bound = np.clip(along * np.sin(self.arc), -1, 1)
            along = np.where(beyond, along, np.arcsin(bound) / self.arc)
        across = axes[1] - half * self._shift(np.asarray(along, np.float32))
        main = np.asarray(half + half * along, np.float32)
        other = np.asarray(across, np.float32)
        return (other, main) if self.vertical else (main, other)


def random_bend(rng: np.random.Generator, strength: float) -> Bend:
    """Draws a bend: cylinder, waves or flat; `strength` 0..1 scales how likely it is."""
    if not chance(rng, 0.45 * strength):
        return Bend()
    if chance(rng, 0.6):
        arc = uniform(rng, 0.25, 1.25)
        return Bend(chance(rng, 0.35), arc, uniform(rng, -0.3, 0.3) * arc)
    return Bend(
        chance(rng, 0.4),
        wave=uniform(rng, 0.01, 0.07),
        turns=uniform(rng, 1.5, 7),
        phase=uniform(rng, 0, 6.28),
    )


def homography(
    rng: np.random.Generator,
    size: tuple[int, int],
    centre: tuple[float, float],
    angle: float,
    tilt: float,
) -> Float:
    """Builds a sheet-to-image homography at scale 1.

    Args:
        rng: Source of randomness.
        size: Sheet width and height in pixels.
        centre: Where the sheet's centre goes, image pixels.
        angle: Turn in radians.
        tilt: Strength of perspective: 0 none, 0.5 strong.

    Returns:
        [3, 3] float32.
    """
    width, height = size
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64) * np.array(
        [width / 2, height / 2]
    )
    pitch, yaw = (float(v) for v in rng.uniform(-tilt, tilt, 2))
    distance = 1.6 * max(width, height)
    depth = distance + half[:, 0] * np.sin(yaw) + half[:, 1] * np.sin(pitch)
    seen = half * np.array([np.cos(yaw), np.cos(pitch)]) * (distance / depth)[:, None]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = seen @ turn.T + np.array(centre)
    start = half + np.array([width / 2, height / 2])
    matrix = cv2.getPerspectiveTransform(start.astype(np.float32), corners.astype(np.float32))
    return np.asarray(matrix, np.float32)


def project(matrix: Float, points: Float) -> Float:
    """Maps [..., 2] points by a [3, 3] homography."""
    flat = np.asarray(points, np.float64).reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(flat[:, :2] / flat[:, 2:], np.float32).reshape(points.shape)


def outline(box: tuple[float, float, float, float]) -> Float:
    """Lists points along the four edges of a box; [4 * 24, 2]."""
    left, top, right, bottom = box
    t = np.linspace(0, 1, _OUTLINE_POINTS)
    xs, ys = left + (right - left) * t, top + (bottom - top) * t
    edges = [(xs, top + 0 * t), (xs, bottom + 0 * t), (left + 0 * t, ys), (right + 0 * t, ys)]
    return np.concatenate([np.stack(edge, -1) for edge in edges]).astype(np.float32)


@dataclass(frozen=True)
class Pose:
    """The pose of a sheet in the image: bend first, then homography."""

    matrix: Float
    bend: Bend

    def extent(self, box: tuple[float, float, float, float], size: tuple[int, int]) -> Float:
        """Bounds [4] (left, top, right, bottom) in the image of a box on the sheet."""
        points = project(self.matrix, self.bend.forward(outline(box), size))
        return np.concatenate([points.min(0), points.max(0)]).astype(np.float32)


def mark_extent(mark: Mark, sheet: Sheet, pose: Pose) -> Float:
    """Bounds [4] of a mark in the image."""
    return pose.extent(mark.box, (sheet.colour.shape[1], sheet.colour.shape[0]))


def paste(image: Bytes, sheet: Sheet, pose: Pose, shadow: float = 0.0) -> None:
    """Draws a sheet into an image.

    Args:
        image: [H, W, 3] uint8, changed in place.
        sheet: What to draw.
        pose: Where.
        shadow: Darkness 0..1 of the soft shadow around the sheet's edge.
    """
    high, wide = sheet.colour.shape[:2]
    left, top, right, bottom = pose.extent((0, 0, wide, high), (wide, high))
    pad = 6 if shadow else 1
    x0, y0 = max(0, int(left) - pad), max(0, int(top) - pad)
    x1 = min(image.shape[1], int(np.ceil(right)) + pad)
    y1 = min(image.shape[0], int(np.ceil(bottom)) + pad)
    if x1 - x0 < 2 or y1 - y0 < 2:  # noqa: PLR2004
        return
    colour, cover = _seen(sheet, pose, (x0, y0, x1, y1))
    area = image[y0:y1, x0:x1]
    base = area.astype(np.float32)
    if shadow:
        cast = cv2.GaussianBlur(cover, (0, 0), 3)
        cast = cv2.warpAffine(cast, np.array([[1, 0, 2], [0, 1, 2]], "f"), cast.shape[::-1])
        base *= (1 - shadow * cast)[..., None]
    base += (colour - base) * cover[..., None]
    area[...] = np.clip(base + 0.5, 0, 255).astype(np.uint8)


def _seen(sheet: Sheet, pose: Pose, window: tuple[int, int, int, int]) -> tuple[Float, Float]:
    """Resamples a sheet in an image window; returns colour [h, w, 3] and cover [h, w]."""
    x0, y0, x1, y1 = window
    high, wide = sheet.colour.shape[:2]
    inverse = np.linalg.inv(np.asarray(pose.matrix, np.float64))
    ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    xs, ys = xs + 0.5, ys + 0.5
    deep = inverse[2, 0] * xs + inverse[2, 1] * ys + inverse[2, 2]
    u = np.asarray((inverse[0, 0] * xs + inverse[0, 1] * ys + inverse[0, 2]) / deep, np.float32)
    v = np.asarray((inverse[1, 0] * xs + inverse[1, 1] * ys + inverse[1, 2]) / deep, np.float32)
    if not pose.bend.flat:
        u, v = pose.bend.backward(u, v, (wide, high))
    u, v = np.asarray(u - 0.5, np.float32), np.asarray(v - 0.5, np.float32)
    colour = cv2.remap(sheet.colour, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.remap(sheet.opacity, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(colour, np.float32), np.asarray(cover, np.float32)
