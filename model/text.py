"""Text that every encoder takes."""

from __future__ import annotations

import re

# Python has them in names of files whose bytes are no UTF-8, and from "\ud800" in JSON.
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
# Terminals act on the first ones, and show what follows the others in another line or order.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def valid_text(text: str) -> str:
    """Returns the text with U+FFFD for surrogates, which no encoding of Unicode has."""
    return text if text.isascii() else _SURROGATES.sub(_REPLACEMENT, text)


def shown_text(text: str) -> str:
    """Returns text of a file for a terminal: in one line, control characters as in Python."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], valid_text(text))


def has_controls(text: str) -> bool:
    """Whether a text has control characters."""
    return _CONTROLS.search(text) is not None
