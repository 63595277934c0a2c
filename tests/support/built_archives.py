"""Builds the wheel and the source archive from a copy of the tracked files."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.support.repository import ROOT

_SOURCES = ("lite_detr_client", "model", "service", "proto", "docs", "requirements")
_FILES = (
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)
_BUILD_FILES = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "*.part")


def copy_of_the_project(folder: Path) -> Path:
    """Copies the project without the git repository and without build files."""
    for name in _SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=_BUILD_FILES)
    for name in _FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(project: Path, output: Path, *what: str) -> list[Path]:
    """Runs `python -m build` with the installed setuptools; returns the files that it wrote.

    Args:
        project: folder with pyproject.toml.
        output: gets the archives.
        *what: `--wheel`, `--sdist`; without either: the source archive, and a wheel from it.
    """
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(output)]
    done = subprocess.run(
        [*command, str(project)], cwd=output.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(output.iterdir())


def contents_of_wheel(path: Path) -> dict[str, str]:
    """SHA-256 of every file by name, without RECORD."""
    with zipfile.ZipFile(path) as wheel:
        return {
            name: hashlib.sha256(wheel.read(name)).hexdigest()
            for name in wheel.namelist()
            if not name.endswith("/RECORD")
        }


def names_in_sdist(path: Path) -> set[str]:
    """Paths of all files, relative to the archive's top folder."""
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}
