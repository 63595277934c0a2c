"""The fenced blocks of the documentation and their test modes.

The opening line of a block with commands or code has its mode:

    sh run                   runs in a copy of the checkout, with a service running
    python run               the same for Python
    sh run-until Ready       runs until it prints the text; SIGTERM must then end it with status 0
    sh not-run: REASON       is not run; only its flags are checked
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.repository import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "lite_detr_client/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
)
_FENCE = re.compile(r"^```(?P<opening>[^\n]*)\n(?P<body>.*?)^```\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    mode: str  # "run", "run-until ...", "not-run: ...", or "" without commands
    body: str

    def __str__(self) -> str:
        """Returns the test ID."""
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    """Yields every fenced block of every page, in order."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            language, _, mode = match["opening"].strip().partition(" ")
            line = text.count("\n", 0, match.start()) + 1
            yield Block(page, line, language, mode, match["body"])
