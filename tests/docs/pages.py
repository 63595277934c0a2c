"""The fenced blocks of the documentation, and what their opening lines say of them.

A block of commands or code says on its opening line what becomes of it:

    sh run                   runs, in a folder like a checkout, beside a service
    python run               likewise
    sh run-until Ready       runs until it has said that, is then asked to end, and must end well
    sh not-run: REASON       needs what tests have not; its flags are looked up all the same
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.repository import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
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
    mode: str  # "run", "run-until ...", "not-run: ...", or "" for what is no command
    body: str

    def __str__(self) -> str:
        """Names it in the reports of tests."""
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    """Every fenced block of every page, in order."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            language, _, mode = match["opening"].strip().partition(" ")
            line = text.count("\n", 0, match.start()) + 1
            yield Block(page, line, language, mode, match["body"])
