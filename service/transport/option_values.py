"""Numbers of requests: JSON numbers, or text in the form of JSON numbers."""

from __future__ import annotations

import math
import re

_MAX_TEXT = 40  # characters
_MAX_DIGITS = 18
# Not all that Python reads: "0_1", digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(rf"[0-9]{{1,{_MAX_DIGITS}}}")


def number_of(value: object) -> float | None:
    """The finite number that a value is or, as text, stands for; None for anything else."""
    if isinstance(value, str):
        text = value.strip(" \t")
        if len(text) > _MAX_TEXT or not _NUMBER.fullmatch(text):
            return None
        number = float(text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
    else:
        return None
    return number if math.isfinite(number) else None


def whole_of(value: object) -> int | None:
    """The whole number from 0 up that a value is or, as text, stands for; None for anything else.

    The JSON number 3.0 is 3: many programs have only one type of numbers.
    """
    if isinstance(value, str):
        text = value.strip(" \t")
        return int(text) if _WHOLE.fullmatch(text) else None
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**_MAX_DIGITS:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None
