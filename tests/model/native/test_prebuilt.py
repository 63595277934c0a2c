"""Libraries built ahead of time: which one is loaded, and that each agrees with the reference."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.native import library, prebuilt
from model.native.library import ALL, ATTENTION, RESIZE
from model.ops import cpu, operators, reference
from tests.model.native.sources import changed_sources
from tests.model.ops.attention_cases import KINDS, Kind, assert_close, gradients, random_case

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smallest library at every level."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prebuilt, "ALL", (RESIZE,))
        directory = tmp_path_factory.mktemp("ahead") / "compiled"
        paths = prebuilt.build_levels(directory)
        assert sorted(directory.iterdir()) == sorted(paths)
        yield directory


@pytest.fixture(scope="module")
def all_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every library at every level."""
    directory = tmp_path_factory.mktemp("all") / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prebuilt, "ALL", ALL)  # whatever `built` has changed
        prebuilt.build_levels(directory)
    return directory


def runnable() -> list[prebuilt.Level]:
    features = prebuilt._features()
    return [level for level in prebuilt.levels() if level.needs <= features]


def test_checkout_has_none() -> None:
    assert prebuilt.load_prebuilt(ATTENTION) is None


@pytest.mark.slow
@needs_compiler
def test_one_library_per_level_of_the_family(built: Path) -> None:
    assert len(list(built.iterdir())) == len(prebuilt.levels()) > 0


@needs_compiler
@pytest.mark.slow
@pytest.mark.family
def test_every_library_is_built_at_every_level(all_built: Path) -> None:
    assert len(list(all_built.iterdir())) == len(ALL) * len(prebuilt.levels()) > 0


@needs_compiler
@pytest.mark.slow
def test_best_level_that_the_processor_runs_is_taken(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for level in runnable():
        monkeypatch.setattr(prebuilt, "_features", lambda level=level: level.needs)
        loaded = prebuilt.load_prebuilt(RESIZE, built)
        assert loaded is not None
        assert f"-{level.name}-" in loaded._name


@needs_compiler
def test_processor_below_every_level_gets_none(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prebuilt, "_features", frozenset)
    assert prebuilt.load_prebuilt(RESIZE, built) is None


@needs_compiler
def test_libraries_of_other_sources_are_passed_over(built: Path, tmp_path: Path) -> None:
    assert prebuilt.load_prebuilt(RESIZE, built) is not None
    assert prebuilt.load_prebuilt(changed_sources(tmp_path), built) is None


def test_damaged_library_counts_as_none(tmp_path: Path) -> None:
    for level in prebuilt.levels():
        prebuilt._path(ATTENTION, level, tmp_path).write_bytes(b"cut short")
    assert prebuilt.load_prebuilt(ATTENTION, tmp_path) is None


def test_missing_compiler_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "_COMPILERS", ())
    monkeypatch.setattr(prebuilt, "DIRECTORY", tmp_path)
    assert prebuilt.main() == 1
    assert "no C++ compiler found" in capsys.readouterr().err


@needs_compiler
@pytest.mark.slow
@pytest.mark.family
@pytest.mark.parametrize("level", runnable(), ids=lambda level: level.name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_level_gives_the_numbers_of_the_reference(
    all_built: Path, monkeypatch: pytest.MonkeyPatch, level: prebuilt.Level, kind: Kind
) -> None:
    monkeypatch.setattr(prebuilt, "_features", lambda: level.needs)
    monkeypatch.setattr(cpu, "load_any", lambda sources: prebuilt.load_prebuilt(sources, all_built))
    monkeypatch.setattr(cpu._kernels, "tried", False)
    monkeypatch.setattr(cpu._kernels, "library", None)
    case = random_case(kind)
    output, grads = gradients(operators, case, torch.float32)
    exact, exact_grads = gradients(reference, case, torch.float64)
    assert f"-{level.name}-" in cpu.library()._name
    assert_close(output, exact)
    for name, grad in grads.items():
        assert_close(grad, exact_grads[name])
