"""requirements/hashes: complete lists of packages, each with an exact version and hashes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements.make_hashes import entries
from tests.support.repository import ROOT
from tests.test_repository import locked

FOLDER = ROOT / "requirements" / "hashes"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[A-Za-z0-9.]+)( ; (?P<marker>[^\\]+))?"
    r"( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
)


def packages(*names: str) -> dict[str, str]:
    """The versions in files that this platform installs."""
    found: dict[str, str] = {}
    for name in names:
        for each in entries((FOLDER / f"{name}.txt").read_text(encoding="utf-8")).values():
            for entry in each:
                head = Requirement(entry.partition(" \\\n")[0])
                if head.marker is None or head.marker.evaluate():
                    found[canonicalize_name(head.name)] = str(head.specifier).removeprefix("==")
    return found


def required(roots: list[str]) -> set[str]:
    """The packages that these requirements install, by the metadata of what is installed."""
    found: set[str] = set()
    pending = [Requirement(text) for text in roots]
    while pending:
        wanted = pending.pop()
        name = canonicalize_name(wanted.name)
        if not _applies(wanted, set()) or (name in found and not wanted.extras):
            continue
        found.add(name)
        inner = [Requirement(text) for text in _requirements_of(name)]
        pending += [each for each in inner if _applies(each, wanted.extras)]
    return found


def _requirements_of(name: str) -> list[str]:
    if name == "torch":  # its builds differ, and have a file of their own
        return []
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:  # an older installation
        return []


def _applies(wanted: Requirement, extras: set[str]) -> bool:
    if wanted.marker is None:
        return True
    return any(wanted.marker.evaluate({"extra": extra}) for extra in extras or {""})


@pytest.mark.parametrize("file", ["serve", "otel", "heic", "full", "ray", "torch"])
def test_each_entry_has_an_exact_version_and_hashes_and_names_no_host(file: str) -> None:
    text = (FOLDER / f"{file}.txt").read_text(encoding="utf-8")
    header, _, rest = text.partition("\n")
    assert header.startswith("# Written by")
    assert "".join(match[0] for match in ENTRY.finditer(rest)) == rest
    assert "://" not in text


def test_nothing_is_listed_twice() -> None:
    names = [name for file in ("serve", "otel", "heic", "full", "ray") for name in packages(file)]
    assert len(names) == len(set(names))


def test_versions_are_those_of_the_lock() -> None:
    lock = locked()
    listed = packages("serve", "otel", "heic", "full", "ray")
    assert {name: lock[name] for name in listed} == listed
    assert packages("torch")["torch"] == lock["torch"]


def test_the_lists_are_complete_as_pip_adds_no_dependencies() -> None:
    extras = PROJECT["optional-dependencies"]
    base = PROJECT["dependencies"]
    assert required(base) - {"torch"} <= set(packages("serve"))
    assert required(base + extras["otel"]) - {"torch"} <= set(packages("serve", "otel"))
    assert required(base + extras["heic"]) - {"torch"} <= set(packages("serve", "heic"))
    complete = set(packages("serve", "otel", "heic", "full"))
    assert required(base + extras["train"] + extras["dev"]) - {"torch"} <= complete
    of_torch = {Requirement(text).name for text in distribution("torch").requires or []}
    assert {"sympy", "setuptools"} <= {canonicalize_name(name) for name in of_torch}
    assert {"sympy", "setuptools", "mpmath"} <= set(packages("serve"))


def test_pip_refuses_a_file_with_another_hash(tmp_path: Path) -> None:
    archive = tmp_path / "sniff_test-1.0-py3-none-any.whl"
    archive.write_bytes(b"not the expected file")
    listed = tmp_path / "list.txt"
    listed.write_text(f"sniff-test==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-index", "--no-deps", "--require-hashes"]
    argv = [*pip, "--find-links", str(tmp_path), "-d", str(tmp_path / "out"), "-r", str(listed)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
