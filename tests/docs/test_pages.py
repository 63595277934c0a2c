"""What the pages refer to exists: files, links, anchors, folders; llms.txt lists every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES
from tests.support.repository import ROOT

DOCUMENTS = (*PAGES, "CHANGELOG.md", "llms.txt")
FOLDERS = "benchmarks|docker|docs|lite_detr_client|model|proto|requirements|service|tests"
SOURCES = r"[\w./*-]+/[\w.*-]+\.(?:py|cpp|cuh|cu|h|sh|proto)(?!\w)"
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def referenced_files(text: str) -> set[str]:
    """Paths of source files anywhere, and of anything in the folders of the repository.

    Paths with the placeholder NAME are left out.
    """
    text = re.sub(r"\w+://\S+|localhost:\d+\S*", "", text)
    in_folders = rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]*"
    found = re.findall(rf"{in_folders}|(?<![\w./-]){SOURCES}", text)
    return {path.rstrip(".") for path in found if "NAME" not in path}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_files_named_on_a_page_exist(page: str) -> None:
    for path in referenced_files(text_of(page)):
        base = (ROOT / page).parent if path.startswith("..") else ROOT
        assert any(base.glob(path.rstrip("/"))), f"{page} names {path}"


def test_missing_file_is_detected() -> None:
    text = "`model/no_such.py`, csrc/some.cpp. (docs/images/*.svg), https://a.test/docs/x.py"
    assert referenced_files(text) == {"model/no_such.py", "csrc/some.cpp", "docs/images/*.svg"}


def anchors_of(text: str) -> set[str]:
    """Anchors of the headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for link in _LINK.findall(text_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), f"{page}: {link}"


def test_llms_txt_lists_every_page_with_one_line() -> None:
    text = text_of("llms.txt")
    assert re.match(r"# Lite DETR Serving\n\n> [^\n]+\n\n", text)
    entries = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): \S.+$", text, re.MULTILINE)
    assert len(entries) == text.count("\n- ")
    assert set(entries) == {*PAGES, "CHANGELOG.md"}
    assert len(entries) == len(set(entries))


def test_readme_lists_every_page_of_the_docs() -> None:
    links = _LINK.findall(text_of("README.md"))
    pages = {page for page in PAGES if page.startswith("docs/")}
    assert pages | {"CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} <= set(links)


def folders_with_code(package: Path) -> set[str]:
    """The package and its direct subfolders with Python modules, except generated ones."""
    inside = {path.parent for path in package.glob("*/*.py") if path.parent.name != "pb"}
    return {f"{path.relative_to(ROOT).as_posix()}/" for path in (package, *inside)}


def test_architecture_lists_every_folder() -> None:
    text = text_of("docs/architecture.md")
    listed = set(re.findall(r"^\| `([^`]+/)` \|", text, re.MULTILINE))
    expected = folders_with_code(ROOT / "model") | folders_with_code(ROOT / "service")
    assert expected <= listed
    assert all((ROOT / folder).is_dir() for folder in listed)
