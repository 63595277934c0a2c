"""Reads the comments beside the fields of a class: the one place where an option is explained.

# --- optimizer: how the weights move             -> heading "Optimizer" for what follows
batch_size: int = 8  # images a forward pass      -> text "images a forward pass"
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from typing import Any


@dataclasses.dataclass(frozen=True)
class FieldComment:
    """What the source says about one field."""

    text: str  # the comment behind it; empty where there is none
    heading: str | None  # start of the comment above its section


def field_comments(record: type[Any]) -> dict[str, FieldComment]:
    """The comments of a class's annotated fields, by field name.

    Empty where the class's source is not at hand.
    """
    try:
        source = textwrap.dedent(inspect.getsource(record))
    except OSError:
        return {}
    trailing, headings = _comments(source)
    found = {}
    for name, line in _last_lines_of_fields(source).items():
        above = [heading for at, heading in headings.items() if at < line]
        found[name] = FieldComment(trailing.get(line, ""), above[-1] if above else None)
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """By line: comments behind code, and the headings that open a block of comments."""
    trailing: dict[int, str] = {}
    headings: dict[int, str] = {}
    last_own_line = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        text = token.string.lstrip("#- ").strip()
        if token.line.lstrip().startswith("#"):
            if line != last_own_line + 1:
                heading = re.split(r"[:.]", text)[0].strip()
                headings[line] = heading[:1].upper() + heading[1:]
            last_own_line = line
        else:
            trailing[line] = text
    return trailing, headings


def _last_lines_of_fields(source: str) -> dict[str, int]:
    """The line on which each field's statement ends, where its comment stands."""
    [class_node] = ast.parse(source).body
    assert isinstance(class_node, ast.ClassDef)
    return {
        node.target.id: node.end_lineno or node.lineno
        for node in class_node.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
