"""A Python environment with exactly some of the packages that are installed here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def build(folder: Path, packages: Iterable[str], *, with_requirements: bool) -> Path:
    """Creates an environment whose packages are links to the installed ones.

    Args:
        folder: of the environment.
        packages: their names.
        with_requirements: also what the packages require.

    Returns:
        The interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    add(folder, packages, with_requirements=with_requirements)
    return folder / "bin" / "python"


def add(folder: Path, packages: Iterable[str], *, with_requirements: bool) -> None:
    """Adds packages to an environment of `build`."""
    (site,) = folder.glob("lib/python*/site-packages")
    for name in _closure(packages) if with_requirements else packages:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            source, link = Path(str(distribution.locate_file(top))), site / top
            if link.is_symlink() or link.exists():
                _merge(link, source)
            else:
                link.symlink_to(source)


def _merge(link: Path, source: Path) -> None:
    """Two packages share a folder, which is one folder of the installed environment."""
    assert link.resolve() == source.resolve(), f"{link} and {source} differ"


def _closure(packages: Iterable[str]) -> set[str]:
    """The packages and all that they require here."""
    found: set[str] = set()
    wanted = list(packages)
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                wanted.append(required.name)
    return found
