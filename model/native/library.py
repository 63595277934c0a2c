"""Builds C++ sources on the machine that runs them and caches the result in the user's home.

Sources -> system compiler -> one plain shared library (no torch or Python headers, so independent
of their versions). The file's name has a hash of sources, compiler, flags and processor features,
so a stale build, or one of another machine, is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fopenmp-simd",  # the simd pragmas only: no OpenMP runtime is linked
    "-fno-math-errno",
    "-fno-trapping-math",
)
_BUILD_LIMIT_SECONDS = 600.0  # about 5 s of work; a busy machine may take a minute


class BuildError(Exception):
    """The library cannot be built or loaded here; the message says why."""


@dataclass(frozen=True)
class Sources:
    """The sources of one library: every `.cpp` and `.h` of a folder."""

    name: str  # of the library
    directory: Path
    flags: tuple[str, ...] = ()  # for the compiler, in addition to the common ones
    x86_flags: tuple[str, ...] = ()  # only on x86, after all others

    def read(self) -> bytes:
        """Names and contents of all files."""
        files = (*self.directory.glob("*.h"), *self.directory.glob("*.cpp"))
        return b"".join(
            file.name.encode() + b"\0" + file.read_bytes() + b"\0" for file in sorted(files)
        )


_MODEL = Path(__file__).parents[1]
ATTENTION = Sources("deform_attn", _MODEL / "ops" / "csrc")
# A fused multiply-add would change the last bit of the weights, which equal Pillow's. With AVX-512
# it was measured to be a sixth slower.
RESIZE = Sources(
    "resize",
    _MODEL / "native" / "csrc",
    flags=("-ffp-contract=off",),
    x86_flags=("-mno-avx512f",),
)
ALL = (ATTENTION, RESIZE)


def load_library(sources: Sources, cache_dir: Path | None = None) -> ctypes.CDLL:
    """Loads a library, and builds it first if the cache has no build for this machine.

    Args:
        sources: of the library.
        cache_dir: of the builds; default: `.cache/lite-detr/ops` in the user's home.

    Raises:
        BuildError: without a compiler, if the build fails, or if the result cannot be written.
    """
    compiler = _find_compiler()
    directory = cache_directory(cache_dir)
    processor = _processor_features()
    try:
        flags = (*_FLAGS, *_native_flags(processor))
        return _built_and_loaded(sources, compiler, flags, directory)
    except BuildError:  # a compiler older than the processor: build portable code
        return _built_and_loaded(sources, compiler, _FLAGS, directory)


def cache_directory(directory: Path | None = None) -> Path:
    """The folder of all compiled kernels, created if missing.

    Raises:
        BuildError: if it cannot be created.
    """
    try:
        directory = directory or Path.home() / ".cache" / "lite-detr" / "ops"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise BuildError(f"the folder of compiled kernels cannot be created: {error}") from error
    return directory


def compile_library(sources: Sources, flags: tuple[str, ...], path: Path) -> None:
    """Compiles sources into `path` with further compiler flags, such as those of an architecture.

    Raises:
        BuildError: without a compiler, or if the build fails.
    """
    _compile(sources, _find_compiler(), (*_FLAGS, *flags), path)


def _find_compiler() -> str:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler found (looked for {', '.join(_COMPILERS)})")
    return compiler


def _built_and_loaded(
    sources: Sources, compiler: str, flags: tuple[str, ...], directory: Path
) -> ctypes.CDLL:
    path = directory / f"{sources.name}-{_fingerprint(sources, compiler, flags)}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged: built again below
            path.unlink(missing_ok=True)
    _compile(sources, compiler, flags, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"cannot load the compiled kernels: {error}") from error


def _processor_features() -> str:
    """Everything that the compiler's `native` may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("flags", "Features", "model", "cpu family", "vendor_id", "CPU part")
    facts = {line for line in lines if line.partition(":")[0].strip() in wanted}
    return "\n".join((platform.machine(), *sorted(facts)))


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def _native_flags(processor: str) -> tuple[str, ...]:
    if _is_x86():
        wide = ("-mprefer-vector-width=512",) if "avx512f" in processor else ()
        return ("-march=native", *wide)
    return ("-mcpu=native",)


def _fingerprint(sources: Sources, compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(sources.read())
    executable = Path(compiler).resolve()
    status = executable.stat()
    identity = (str(executable), str(status.st_size), str(status.st_mtime_ns))
    described = (*identity, *flags, *sources.flags, *sources.x86_flags, _processor_features())
    digest.update("\0".join(described).encode())
    return digest.hexdigest()[:24]


def _compile(sources: Sources, compiler: str, flags: tuple[str, ...], path: Path) -> None:
    files = [str(file) for file in sorted(sources.directory.glob("*.cpp"))]
    flags = (*flags, *sources.flags, *(sources.x86_flags if _is_x86() else ()))
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as workplace:
            built = Path(workplace) / path.name
            command = [compiler, *flags, *files, "-o", str(built), "-ldl", "-lpthread"]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_BUILD_LIMIT_SECONDS, check=False
            )
            if done.returncode != 0:
                raise BuildError(
                    f"{compiler} ended with {done.returncode}: {done.stderr.strip()[:2000]}"
                )
            os.replace(built, path)  # atomic: another process sees the whole file or none
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"building the kernels with {compiler} failed: {error}") from error
