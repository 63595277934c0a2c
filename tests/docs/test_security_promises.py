"""Each statement of docs/security.md names tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.support.repository import ROOT

SECTIONS = ("Defaults", "API keys", "TLS")
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def _page() -> str:
    return (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def _section(title: str) -> str:
    _, _, rest = _page().partition(f"\n## {title}\n")
    assert rest, f"docs/security.md has no section {title}"
    return rest.partition("\n## ")[0]


def _statements(title: str) -> list[str]:
    """The list items of a section, each with its following lines."""
    items = re.findall(r"^- .*(?:\n {2}.*)*", _section(title), re.MULTILINE)
    assert len(items) > 1
    return items


@pytest.mark.parametrize("title", SECTIONS)
def test_every_statement_names_a_test(title: str) -> None:
    missing = [item.splitlines()[0] for item in _statements(title) if not _TEST.search(item)]
    assert not missing


@pytest.mark.parametrize("title", SECTIONS)
def test_statements_are_list_items(title: str) -> None:
    """Other paragraphs only introduce a list, a table or an example."""
    text = re.sub(r"```.*?```", "", _section(title), flags=re.DOTALL)
    paragraphs = (part for part in text.split("\n\n") if part.strip())
    others = [part for part in paragraphs if part.lstrip()[0] not in "-|"]
    assert all(part.rstrip()[-1] in ":." and len(part.split()) < 40 for part in others), others


def test_the_named_tests_exist() -> None:
    found = _TEST.findall(_page())
    assert len(found) > 30
    for path, name in found:
        assert (ROOT / path).is_file(), path
        source = (ROOT / path).read_text(encoding="utf-8")
        wanted = name or r"test_\w+"
        pattern = rf"^(?:async )?def {wanted}\("
        assert re.search(pattern, source, re.MULTILINE), f"{path} has no {name}"
