"""Building libraries: the cache, and everything that can be missing or broken."""

from __future__ import annotations

import ctypes
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.native import library
from model.native.library import ATTENTION, BuildError, load_library
from tests.model.native.sources import changed_sources

SYMBOLS = ("lite_detr_deform_attn_forward", "lite_detr_deform_attn_backward")

SOURCES = ATTENTION

# Stand-ins for a compiler, which compile in no time: the real one is tested by test_cpu.py.
COPYING = """#!/bin/sh
echo ran >> "{log}"
for argument; do [ "$previous" = -o ] && cp "{product}" "$argument"; previous=$argument; done
"""
FAILING = """#!/bin/sh
echo "cannot make sense of $1" >&2
exit 3
"""
REFUSING_NATIVE = """#!/bin/sh
for argument; do case $argument in -m*) echo "unknown option" >&2; exit 1;; esac; done
for argument; do [ "$previous" = -o ] && cp "{product}" "$argument"; previous=$argument; done
"""


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library that any program can load: the one that holds ctypes itself."""
    extension = Path(str(__import__("_ctypes").__file__))
    return Path(shutil.copy(extension, tmp_path_factory.mktemp("product") / "any.so"))


def _use_compiler(
    monkeypatch: pytest.MonkeyPatch, directory: Path, script: str, product: Path
) -> Path:
    log = directory / "runs.log"
    log.touch()
    compiler = directory / "c++"
    compiler.write_text(script.format(log=log, product=product))
    compiler.chmod(0o755)
    monkeypatch.setattr(library, "shutil", SimpleNamespace(which=lambda _name: str(compiler)))
    return log


def _runs(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_second_load_uses_the_build_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, product: Path
) -> None:
    log = _use_compiler(monkeypatch, tmp_path, COPYING, product)
    cache = tmp_path / "new" / "cache"
    assert isinstance(load_library(SOURCES, cache), ctypes.CDLL)
    load_library(SOURCES, cache)
    assert _runs(log) == 1
    assert [file.suffix for file in cache.iterdir()] == [".so"]


@pytest.mark.parametrize("changed", ["compiler", "processor", "sources"])
def test_changed_dependencies_of_a_build_cause_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, product: Path, changed: str
) -> None:
    log, sources = _use_compiler(monkeypatch, tmp_path, COPYING, product), SOURCES
    load_library(sources, tmp_path / "cache")
    if changed == "compiler":
        _use_compiler(monkeypatch, tmp_path, COPYING + "# a later version\n", product)
    elif changed == "processor":
        monkeypatch.setattr(library, "_processor_features", lambda: "flags : something else")
    else:
        sources = changed_sources(tmp_path)
    load_library(sources, tmp_path / "cache")
    assert _runs(log) == 2


def test_damaged_build_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, product: Path
) -> None:
    _use_compiler(monkeypatch, tmp_path, COPYING, product)
    load_library(SOURCES, tmp_path / "cache")
    (build,) = (tmp_path / "cache").iterdir()
    damaged = tmp_path / "other cache" / build.name  # elsewhere: this process has loaded the first
    damaged.parent.mkdir()
    damaged.write_bytes(b"cut short")
    load_library(SOURCES, damaged.parent)
    assert damaged.read_bytes() == build.read_bytes()


def test_simultaneous_loads_leave_one_whole_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, product: Path
) -> None:
    _use_compiler(monkeypatch, tmp_path, COPYING, product)
    loaded: list[ctypes.CDLL] = []
    threads = [
        threading.Thread(target=lambda: loaded.append(load_library(SOURCES, tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_compiler_without_native_flags_builds_plain_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, product: Path
) -> None:
    _use_compiler(monkeypatch, tmp_path, REFUSING_NATIVE, product)
    assert isinstance(load_library(SOURCES, tmp_path / "cache"), ctypes.CDLL)


def test_failing_compiler_is_reported_with_its_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, product: Path
) -> None:
    _use_compiler(monkeypatch, tmp_path, FAILING, product)
    with pytest.raises(BuildError, match=r"ended with 3: cannot make sense of -std=c\+\+17"):
        load_library(SOURCES, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_compiler_that_writes_nothing_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, product: Path
) -> None:
    _use_compiler(monkeypatch, tmp_path, "#!/bin/sh\n", product)
    with pytest.raises(BuildError, match="building the kernels"):
        load_library(SOURCES, tmp_path / "cache")


def test_product_that_is_no_library_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("no library")
    _use_compiler(monkeypatch, tmp_path, COPYING, text)
    with pytest.raises(BuildError, match="cannot load"):
        load_library(SOURCES, tmp_path / "cache")


def test_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "shutil", SimpleNamespace(which=lambda _name: None))
    with pytest.raises(BuildError, match=r"no C\+\+ compiler found"):
        load_library(SOURCES, tmp_path)


def test_cache_that_cannot_be_created_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, product: Path
) -> None:
    _use_compiler(monkeypatch, tmp_path, COPYING, product)
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="cannot be created"):
        load_library(SOURCES, tmp_path / "file" / "cache")


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_real_build_offers_both_passes() -> None:
    built = load_library(ATTENTION)
    assert all(hasattr(built, symbol) for symbol in SYMBOLS)
