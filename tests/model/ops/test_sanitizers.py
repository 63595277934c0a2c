"""The CPU kernels under the compiler's address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from model.native import library

_HERE = Path(__file__).parent
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def _compiler(directory: Path) -> str:
    """A compiler with both sanitizers; skips the test where there is none."""
    probe = directory / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    for compiler in filter(None, map(shutil.which, ("c++", "g++", "clang++"))):
        built = directory / "probe"
        command = [compiler, *_SANITIZE, str(probe), "-o", str(built)]
        if _succeeds(command) and _succeeds([str(built)]):
            return compiler
    pytest.skip("no compiler here that links and runs the address sanitizer")


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [pytest.param("x86-64-v4", marks=pytest.mark.family), "baseline"]
)
def test_kernels_touch_nothing_beyond_their_arrays(tmp_path: Path, target: str) -> None:
    compiler = _compiler(tmp_path)
    wanted = {"x86-64-v4": "avx512f", "baseline": ""}[target]
    if wanted not in library._processor_features():
        pytest.skip(f"this processor has no {wanted}")
    flags = [flag for flag in library._FLAGS if flag not in ("-O3", "-shared", "-fPIC")]
    march = [] if target == "baseline" else [f"-march={target}"]
    sources = [str(path) for path in sorted(library.ATTENTION.directory.glob("*.cpp"))]
    program = tmp_path / "sanitized"
    command = [
        compiler,
        *flags,
        "-O1",
        *march,
        *_SANITIZE,
        f"-I{library.ATTENTION.directory}",
        *sources,
    ]
    subprocess.run(
        [*command, str(_HERE / "sanitized.cpp"), "-o", str(program), "-ldl", "-lpthread"],
        check=True,
    )
    done = subprocess.run([str(program)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = "60 networks, 60 decoders, 60 encoders, 60 projections, 60 depthwise convolutions"
    assert done.stdout == f"400 cases, {kinds}\n"
