"""The image that all files of the corpus show, and what is expected of a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UINT8 = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 33, 22  # no multiple of a byte of bits, a block or a tile
EXACT, ROUNDED = 0, 1
LOSSY = 24  # of smooth colours, at high quality


@dataclass(frozen=True)
class CorpusFile:
    """An image file.

    Attributes:
        name: what it is.
        data: the file.
        expected: uint8 [h, w, 3] RGB on white; None if only another reader knows.
        tolerance: largest difference of a sample.
    """

    name: str
    data: bytes
    expected: UINT8 | None
    tolerance: int = EXACT


def _ramp(count: int) -> npt.NDArray[np.float64]:
    return np.linspace(0, 1, count)


def colours() -> npt.NDArray[np.float64]:
    """The scene: float64 [HEIGHT, WIDTH, 3] RGB from 0 to 1, smooth, no two axes alike."""
    across, down = np.meshgrid(_ramp(WIDTH), _ramp(HEIGHT))
    return np.stack([across, down, (1 - across) * 0.7 + 0.3 * down], axis=-1)


def grey() -> npt.NDArray[np.float64]:
    """The scene in grey: float64 [HEIGHT, WIDTH]."""
    across, down = np.meshgrid(_ramp(WIDTH), _ramp(HEIGHT))
    return (across * 2 + down) / 3


def alpha() -> npt.NDArray[np.float64]:
    """How opaque the scene is where it is translucent: float64 [HEIGHT, WIDTH]."""
    across, down = np.meshgrid(_ramp(WIDTH), _ramp(HEIGHT))
    return (1 - across + down) / 2


def integers(values: npt.NDArray[np.float64], bits: int) -> npt.NDArray[np.unsignedinteger]:
    """Values from 0 to 1 as unsigned integers of a depth."""
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return np.rint(values * ((1 << bits) - 1)).astype(kind)


def shown(
    samples: npt.NDArray[np.generic], bits: int = 8, opaque: npt.NDArray[np.float64] | None = None
) -> UINT8:
    """How a person sees integers of a depth: uint8 [h, w, 3], on white."""
    values = samples.astype(np.float64) / ((1 << bits) - 1)
    if values.ndim == 2:
        values = np.repeat(values[..., np.newaxis], 3, axis=-1)
    if opaque is not None:
        values = values * opaque[..., np.newaxis] + 1 - opaque[..., np.newaxis]
    return np.rint(values * 255).astype(np.uint8)
