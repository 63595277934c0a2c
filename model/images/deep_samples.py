"""Samples of other depths -> 8 bits: scaled, never clipped.

Unsigned samples of up to 16 bits are scaled by the largest value of their type (65535 -> 255). For
wider and signed integers and floats no white is defined: the smallest usual one (1 and 255 for
floats, 65535, and the largest value of unsigned types) that is not below the brightest sample is
used. If none is, or samples are negative, darkest to brightest is scaled to 0..255.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_UINT8_MAX = 255
_UINT16_MAX = 65535
_Samples = npt.NDArray[np.generic]


def shallow_to_uint8(samples: _Samples, bits: int) -> npt.NDArray[np.uint8]:
    """Scales unsigned samples of up to 16 bits, with exact rounding in integers."""
    largest = (1 << bits) - 1
    wide = samples.astype(np.uint32)
    return ((wide * _UINT8_MAX + largest // 2) // largest).astype(np.uint8)


def scaled_to_uint8(samples: _Samples, black: float, white: float) -> npt.NDArray[np.uint8]:
    """Scales samples of any type, so that black becomes 0 and white 255."""
    scaled = (_finite(samples) - black) * (_UINT8_MAX / max(white - black, 1e-30))
    return np.rint(scaled).astype(np.uint8)


def black_and_white(strips: Iterable[_Samples], bits: int) -> tuple[float, float]:
    """Returns the samples of an image that become 0 and 255.

    Args:
        strips: the image in parts; of more than 16 bits or signed integers, or floats.
        bits: of a sample.
    """
    darkest, brightest, kind = np.inf, -np.inf, ""
    for samples in strips:
        finite = _finite(samples)
        darkest, brightest = min(darkest, finite.min()), max(brightest, finite.max())
        kind = samples.dtype.kind
    whites = {"f": (1, _UINT8_MAX, _UINT16_MAX), "u": (_UINT16_MAX, (1 << bits) - 1)}
    usual = whites.get(kind, (_UINT16_MAX,))
    white = next((limit for limit in usual if darkest >= 0 and brightest <= limit), None)
    return (float(darkest), float(brightest)) if white is None else (0.0, float(white))


def _finite(samples: _Samples) -> npt.NDArray[np.float64]:
    return np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
