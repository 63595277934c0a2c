"""Text that every encoder takes."""

from __future__ import annotations

import re

# Python has them in names of files whose bytes are no UTF-8, and from "\ud800" in JSON.
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"


def valid_text(text: str) -> str:
    """Returns the text with U+FFFD for surrogates, which no encoding of Unicode has."""
    return text if text.isascii() else _SURROGATES.sub(_REPLACEMENT, text)
