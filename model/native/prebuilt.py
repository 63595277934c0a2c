"""Compiles libraries ahead of time, for machines without a compiler.

The Dockerfile runs `python -m model.native.prebuilt` once. It writes each library for every level
of the processor family to `compiled/`. `load_any` loads the best one that the processor can run. A
checkout has none and compiles for its own processor; see `library.py`.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model.native.library import ALL, BuildError, Sources, compile_library, load_library

DIRECTORY = Path(__file__).parent / "compiled"


@dataclass(frozen=True)
class Level:
    """Features that a group of processors has in common."""

    name: str
    flags: tuple[str, ...]  # for the compiler
    needs: frozenset[str]  # features as /proc/cpuinfo names them


_V2 = frozenset(["cx16", "popcnt", "sse4_1", "sse4_2", "ssse3"])
_V3 = _V2 | frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"])
_V4 = _V3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])
_X86 = (
    Level("x86-64-v4", ("-march=x86-64-v4", "-mprefer-vector-width=512"), _V4),
    Level("x86-64-v3", ("-march=x86-64-v3",), _V3),
    Level("x86-64-v2", ("-march=x86-64-v2",), _V2),
)
_ARM = (
    Level("armv8.2-a", ("-march=armv8.2-a",), frozenset({"asimd", "atomics", "asimdhp"})),
    Level("armv8-a", ("-march=armv8-a",), frozenset({"asimd"})),
)
_FAMILIES = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}


def levels() -> tuple[Level, ...]:
    """The levels of this machine's processor family, best first; none for an unknown family."""
    return _FAMILIES.get(platform.machine(), ())


def build_levels(directory: Path) -> list[Path]:
    """Compiles every library for each level of this processor family.

    Args:
        directory: where the libraries are written.

    Returns:
        The paths, library by library, best level first.

    Raises:
        BuildError: without a compiler, or if a build fails.
    """
    directory.mkdir(parents=True, exist_ok=True)

    def build(task: tuple[Sources, Level]) -> Path:
        sources, level = task
        path = _path(sources, level, directory)
        compile_library(sources, level.flags, path)
        path.chmod(0o755)  # built by one user, loaded by another
        return path

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(build, itertools.product(ALL, levels())))


def load_any(sources: Sources) -> ctypes.CDLL:
    """Loads a library built ahead of time, or else one for this machine, built if necessary.

    Raises:
        BuildError: if there is neither.
    """
    return load_prebuilt(sources) or load_library(sources)


def load_prebuilt(sources: Sources, directory: Path | None = None) -> ctypes.CDLL | None:
    """The best library built ahead of time that this processor can run; None if there is none.

    Libraries built from other sources are ignored.

    Args:
        sources: of the library.
        directory: of the libraries; default: `compiled/` in this folder.
    """
    directory = directory or DIRECTORY
    if not directory.is_dir():
        return None
    features = _features()
    for level in levels():
        path = _path(sources, level, directory)
        if level.needs <= features and path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # e.g. for another C library: a lower level would fail too
                return None
    return None


def _path(sources: Sources, level: Level, directory: Path) -> Path:
    digest = hashlib.sha256(sources.read())
    digest.update("\0".join((*level.flags, *sources.flags, *sources.x86_flags)).encode())
    return directory / f"{sources.name}-{level.name}-{digest.hexdigest()[:16]}.so"


def _features() -> frozenset[str]:
    """The processor's features, as /proc/cpuinfo names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def main() -> int:
    """Builds every level and prints the paths; returns the exit status."""
    try:
        paths = build_levels(DIRECTORY)
    except BuildError as error:
        print(f"cannot compile the kernels ahead: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
