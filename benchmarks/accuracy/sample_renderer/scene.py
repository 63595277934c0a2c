"""Renders a scene: a camera, textured rectangles in space, shadows, and flaws of a real photo.

World coordinates are centimetres: x to the right, y away from the camera, z up. A scene is
painted back to front at twice the size of the photo; `Photo.develop` then scales it down.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Colour = npt.NDArray[np.float32]  # [h, w, 3] RGB, 0..255, or [h, w, 4] with opacity 0..255
Points = npt.NDArray[np.float64]  # [n, 3] in the world or [n, 2] in the photo

_OVERSAMPLING = 2
_DOWN = (0.0, 0.0, -1.0)


@dataclass(frozen=True)
class Print:
    """A flat image of known size, and the codes on it."""

    colour: Colour
    size: tuple[float, float]  # width, height in centimetres
    codes: tuple[PrintedCode, ...] = ()


@dataclass(frozen=True)
class PrintedCode:
    """A code and its place on a print."""

    label: str
    payload: str
    box: tuple[float, float, float, float]  # xyxy in centimetres from the print's top left


@dataclass(frozen=True)
class SeenCode:
    """A code and its place in the photo."""

    label: str
    payload: str
    box: tuple[float, float, float, float]  # xyxy in pixels


@dataclass(frozen=True)
class Camera:
    """A pinhole camera."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    focal: float  # pixels of the photo
    width: int
    height: int

    def project(self, points: Points) -> Points:
        """World points [n, 3] to pixels [n, 2] of the oversampled photo."""
        eye = np.array(self.eye)
        forward = np.array(self.target) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        local = (points - eye) @ np.stack((right, down, forward), 1)
        middle = np.array((self.width, self.height)) / 2
        flat = local[:, :2] / local[:, 2:] * self.focal + middle
        return np.asarray(flat * _OVERSAMPLING, np.float64)


@dataclass(frozen=True)
class Pose:
    """The position of a print: its top left corner and the directions of its sides."""

    corner: tuple[float, float, float]
    across: tuple[float, float, float]  # unit vector of its width
    along: tuple[float, float, float]  # unit vector from top to bottom

    def points(self, places: Points) -> Points:
        """Places [n, 2] on the print, in centimetres, to world points [n, 3]."""
        return np.asarray(
            np.array(self.corner)
            + places[:, :1] * np.array(self.across)
            + places[:, 1:] * np.array(self.along)
        )


def lying(centre: tuple[float, float], size: tuple[float, float], turn: float, z: float) -> Pose:
    """The pose of a print that lies face up, turned to the left by `turn` degrees."""
    angle = np.deg2rad(turn)
    across = np.array((np.cos(angle), np.sin(angle), 0.0))
    along = np.array((np.sin(angle), -np.cos(angle), 0.0))
    corner = np.array((*centre, z)) - across * size[0] / 2 - along * size[1] / 2
    return Pose(_triple(corner), _triple(across), _triple(along))


def standing(corner: tuple[float, float, float], turn: float = 0.0) -> Pose:
    """The pose of a print that stands upright, facing the camera; `corner` is its top left."""
    angle = np.deg2rad(turn)
    return Pose(corner, (float(np.cos(angle)), float(np.sin(angle)), 0.0), _DOWN)


def _triple(vector: Points) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])


class Photo:
    """A photo that is being rendered.

    Args:
        camera: the viewpoint.
        lamp: direction in which the light travels; z is negative.
    """

    def __init__(self, camera: Camera, lamp: tuple[float, float, float]) -> None:
        self._camera = camera
        self._lamp = np.array(lamp)
        shape = (camera.height * _OVERSAMPLING, camera.width * _OVERSAMPLING, 3)
        self._film: Colour = np.zeros(shape, np.float32)
        self.codes: list[SeenCode] = []

    def show(self, print_: Print, pose: Pose, brightness: float = 1.0) -> None:
        """Paints a print over the present content and adds its codes."""
        high, wide = print_.colour.shape[:2]
        width, height = print_.size
        corners = np.array(((0, 0), (width, 0), (width, height), (0, height)), np.float64)
        source = np.array(((0, 0), (wide, 0), (wide, high), (0, high)), np.float32)
        seen = self._camera.project(pose.points(corners)).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(source - 0.5, seen - 0.5)
        colour = print_.colour
        if colour.shape[2] == 3:  # noqa: PLR2004 - RGB without opacity
            colour = np.dstack((colour, np.full((high, wide), 255, np.float32)))
        size = (self._film.shape[1], self._film.shape[0])
        painted = cv2.warpPerspective(colour, matrix, size, flags=cv2.INTER_AREA)
        opacity = painted[..., 3:] / 255
        self._film = np.asarray(
            self._film * (1 - opacity) + painted[..., :3] * opacity * brightness, np.float32
        )
        self.codes += [self._see(code, pose) for code in print_.codes]

    def _see(self, code: PrintedCode, pose: Pose) -> SeenCode:
        left, top, right, bottom = code.box
        corners = np.array(((left, top), (right, top), (right, bottom), (left, bottom)))
        seen = self._camera.project(pose.points(corners)) / _OVERSAMPLING
        low, high = seen.min(0), seen.max(0)
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        return SeenCode(code.label, code.payload, box)

    def brightness(self, normal: Points) -> float:
        """The brightness of an upright face with this outward normal; level faces have 1."""
        to_lamp = -self._lamp / np.linalg.norm(self._lamp)
        return 0.55 + 0.4 * max(0.0, float(normal @ to_lamp))

    def shade(self, outline: Points, height: float, softness: float, depth: float = 0.5) -> None:
        """Darkens the ground in the shadow of an object.

        Args:
            outline: [n, 3] corners of the object's base on the ground, in order.
            height: of the object above its base, in centimetres.
            softness: of the shadow's edge, in pixels of the photo.
            depth: 0..1, how dark the shadow is.
        """
        shift = self._lamp / -self._lamp[2] * height
        lifted = outline + np.array((shift[0], shift[1], 0.0))
        seen = self._camera.project(np.concatenate((outline, lifted)))
        hull = np.zeros(self._film.shape[:2], np.float32)
        cv2.fillConvexPoly(hull, cv2.convexHull(seen.astype(np.int32)), 1.0)
        shadow = cv2.GaussianBlur(hull, (0, 0), softness * _OVERSAMPLING)
        self._film *= 1 - depth * shadow[..., None]

    def develop(self, rng: np.random.Generator, *, exposure: float = 1.0) -> npt.NDArray[np.uint8]:
        """The photo [height, width, 3] RGB: uneven light, vignette, softness, grain."""
        size = (self._camera.width, self._camera.height)
        film = cv2.resize(self._film, size, interpolation=cv2.INTER_AREA)
        ys, xs = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32)
        xs, ys = xs / size[0] - 0.5, ys / size[1] - 0.5
        window = 1.06 - 0.22 * (xs * np.sign(self._lamp[0]) + 0.6 * ys * -np.sign(self._lamp[1]))
        vignette = 1 - 0.28 * (xs**2 + ys**2)
        warmth = np.array((1.02, 1.0, 0.965), np.float32)
        film = film * (window * vignette)[..., None] * warmth * exposure
        film = cv2.GaussianBlur(film, (0, 0), 0.55)
        film += rng.normal(0, 1.6, film.shape[:2])[..., None] + rng.normal(0, 0.8, film.shape)
        # As on film, whites near the limit are compressed instead of clipped.
        film = np.where(film > 215, 215 + 40 * np.tanh((film - 215) / 40), film)  # noqa: PLR2004
        return np.asarray(np.clip(np.rint(film), 0, 255), np.uint8)


@dataclass(frozen=True)
class Box:
    """A carton."""

    top: Print
    front: Print  # as wide as the top
    side: Print  # as wide as the top is long
    height: float  # centimetres; of the front and the side


def put_box(
    photo: Photo, box: Box, centre: tuple[float, float], turn: float, *, softness: float = 10.0
) -> None:
    """Puts a box on the ground: its shadow, the sides towards the camera, and its top.

    Args:
        photo: to paint on.
        box: to paint.
        centre: of its base.
        turn: degrees to the left, below 45.
        softness: of its shadow's edge.
    """
    width, length = box.top.size
    pose = lying(centre, box.top.size, turn, 0.0)
    corners = np.array(((0, 0), (width, 0), (width, length), (0, length)), np.float64)
    base = pose.points(corners)
    photo.shade(base, box.height, softness)
    photo.shade(base, 0.4, 3.0, 0.35)
    across, along = np.array(pose.across), np.array(pose.along)
    lift = np.array((0.0, 0.0, box.height))
    # A side that faces away projects inside the box: the front and the top then cover it.
    faces = (
        (box.side, Pose(_triple(base[0] + lift), pose.along, _DOWN), -across),
        (box.side, Pose(_triple(base[2] + lift), _triple(-along), _DOWN), across),
        (box.front, Pose(_triple(base[3] + lift), pose.across, _DOWN), along),
    )
    for print_, where, normal in faces:
        photo.show(print_, where, photo.brightness(normal))
    photo.show(box.top, Pose(_triple(base[0] + lift), pose.across, pose.along))


def lay_sheet(photo: Photo, print_: Print, centre: tuple[float, float], turn: float) -> None:
    """Lays paper or card on the ground, with the thin shadow of its edges."""
    pose = lying(centre, print_.size, turn, 0.05)
    width, height = print_.size
    corners = np.array(((0, 0), (width, 0), (width, height), (0, height)), np.float64)
    outline = pose.points(corners)
    outline[:, 2] = 0
    photo.shade(outline, 0.25, 4.0, 0.4)
    photo.show(print_, pose)
