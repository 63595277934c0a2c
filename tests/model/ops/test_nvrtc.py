"""The GPU's kernels without a GPU: they compile for every architecture, within their budgets."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks.kernels import sass
from model.native.library import BuildError
from model.ops import nvrtc
from model.ops.nvrtc import Kind, Variant, machine_code

HOPPER = (9, 0)
HALF = sass.usual(torch.float16, "shared_keys")


@pytest.fixture(scope="module", autouse=True)
def _nvrtc_is_here() -> None:
    try:
        nvrtc._compiler()
    except BuildError as error:
        pytest.skip(f"the GPU kernels cannot be compiled here: {error}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize(
    "channels", [8, 256, *(pytest.param(other, marks=pytest.mark.slow) for other in (16, 64, 128))]
)
def test_other_sizes_compile(cache: Path, channels: int, boxes: bool) -> None:
    size = 4 if boxes else 2
    kind: Kind = "plain" if boxes else "separate_keys"
    variant = Variant(torch.bfloat16, torch.float32, kind, channels, 3, 5, 3, size, 1)
    for one in (variant, replace(variant, backward=True)):
        assert machine_code(one, HOPPER, cache).startswith(b"\x7fELF")


def test_second_call_loads_the_code_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = machine_code(HALF, HOPPER, tmp_path)
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(nvrtc, "_compile", None)  # calling it would fail
    assert machine_code(HALF, HOPPER, tmp_path) == first
    assert kept.suffix == ".cubin"


@pytest.mark.parametrize("damage", ["cut short", "empty", "one bit"])
def test_damaged_code_is_built_anew(tmp_path: Path, damage: str) -> None:
    first = machine_code(HALF, HOPPER, tmp_path)
    (kept,) = tmp_path.iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"cut short": content[:-7], "empty": bytearray(), "one bit": content}
    kept.write_bytes(damaged[damage])
    assert machine_code(HALF, HOPPER, tmp_path) == first
    assert machine_code(HALF, HOPPER, tmp_path) == first
    assert [file.name for file in tmp_path.iterdir()] == [kept.name]


@pytest.mark.parametrize("changed", ["sources", "variant", "architecture", "compiler"])
def test_changed_dependencies_of_the_code_give_another_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    compiled: list[tuple[str, ...]] = []

    def compile_nothing(
        _compiler: ModuleType, _program: str, options: tuple[str, ...], _sources: object
    ) -> bytes:
        compiled.append(options)
        return b"code"

    monkeypatch.setattr(nvrtc, "_compile", compile_nothing)
    machine_code(HALF, HOPPER, tmp_path)
    variant, capability = HALF, HOPPER
    if changed == "sources":
        sources = tmp_path / "csrc"
        sources.mkdir()
        (sources / "deform_attn.cu").write_text("// changed")
        monkeypatch.setattr(nvrtc, "_SOURCES", sources)
    elif changed == "variant":
        variant = sass.usual(torch.float16, "plain")
    elif changed == "architecture":
        capability = (8, 0)
    else:
        monkeypatch.setattr(nvrtc._compiler(), "nvrtcVersion", lambda: (0, 99, 0))
    machine_code(variant, capability, tmp_path)
    assert len(compiled) == 2
    assert len(list(tmp_path.glob("*.cubin"))) == 2


def test_gpu_newer_than_the_compiler_gets_code_for_the_driver_to_finish(tmp_path: Path) -> None:
    code = machine_code(HALF, (99, 0), tmp_path)
    assert b".target sm_" in code
    assert b"lite_detr_deform_attn" in code


def test_gpu_older_than_all_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no GPU of compute capability \(3, 0\)"):
        machine_code(HALF, (3, 0), tmp_path)


def test_program_that_does_not_compile_is_reported_with_the_compiler_s_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "deform_attn.cu").write_text("this is no program")
    monkeypatch.setattr(nvrtc, "_SOURCES", tmp_path)
    with pytest.raises(BuildError, match=r"NVRTC refused the kernel: .*expected a declaration"):
        machine_code(HALF, HOPPER, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BuildError, match="NVRTC"):
        machine_code(HALF, HOPPER, tmp_path)


def test_cache_that_cannot_be_written_is_reported_and_the_kernel_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.warns(RuntimeWarning, match="not kept.*disk full"):
        code = machine_code(HALF, HOPPER, tmp_path)
    assert code.startswith(b"\x7fELF")
    with pytest.raises(BuildError, match="disk full"):
        machine_code(HALF, HOPPER, tmp_path, cache_required=True)


def test_cache_folder_that_cannot_be_created_is_reported_and_the_kernel_is_used(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(RuntimeWarning, match="not kept"):
        code = machine_code(HALF, HOPPER, tmp_path / "file" / "ops")
    assert code.startswith(b"\x7fELF")
