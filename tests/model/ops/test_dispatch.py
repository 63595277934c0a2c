"""Which implementation `model.ops` uses, and which inputs it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model import ops
from model.native import library
from model.ops import cpu, operators, reference
from tests.model.ops.attention_cases import KINDS, Kind, attend, random_case


@pytest.fixture(autouse=True)
def _automatic_afterwards() -> Iterator[None]:
    yield
    ops.select_implementation("auto")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the implementations that computed something, in order."""
    calls: list[str] = []
    for name, module in (("cpu", operators), ("reference", reference)):
        for function in ("ms_deform_attn", "key_aware_deform_attn"):
            original = getattr(module, function)

            def spy(*args: object, _name: str = name, _original: object = original) -> object:
                calls.append(_name)
                return _original(*args)  # type: ignore[operator]

            monkeypatch.setattr(module, function, spy)
    return calls


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", KINDS)
def test_float32_on_the_cpu_uses_the_compiled_kernels(called: list[str], kind: Kind) -> None:
    attend(ops, random_case(kind))
    assert called == ["cpu"]
    assert ops.implementation_name("cpu") == "cpu"


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_on_the_cpu_uses_the_compiled_kernels(called: list[str], kind: Kind) -> None:
    assert attend(ops, random_case(kind).mapped(torch.bfloat16)).dtype == torch.bfloat16
    assert called == ["cpu"]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_take_the_reference(called: list[str], kind: Kind, dtype: torch.dtype) -> None:
    assert attend(ops, random_case(kind).mapped(dtype)).dtype == dtype
    assert called == ["reference"]


@pytest.mark.parametrize("kind", KINDS)
def test_reference_can_be_selected(called: list[str], kind: Kind) -> None:
    ops.select_implementation("reference")
    attend(ops, random_case(kind))
    assert called == ["reference"]
    assert ops.implementation_name("cpu") == "reference"


@pytest.mark.usefixtures("compiled")
def test_compiled_kernels_can_be_selected(called: list[str]) -> None:
    ops.select_implementation("cpu")
    attend(ops, random_case("plain"))
    assert called == ["cpu"]


def test_other_devices_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.implementation_name("meta") == "reference"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ops.implementation_name("cuda:0") == "reference"


def test_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'fast'"):
        ops.select_implementation("fast")  # type: ignore[arg-type]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "shutil", SimpleNamespace(which=lambda _name: None))
    monkeypatch.setattr(cpu._kernels, "tried", False)
    monkeypatch.setattr(cpu._kernels, "library", None)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_a_warning_is_given_and_the_reference_computes(
    called: list[str],
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            attend(ops, random_case("shared keys"))
    assert called == ["reference"] * 3
    assert len(caught) == 1
    assert "no C++ compiler found" in str(caught[0].message)
    assert ops.implementation_name("cpu") == "reference"


@pytest.mark.usefixtures("no_compiler")
def test_insisting_on_kernels_that_cannot_be_built_is_an_error() -> None:
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="not available"):
        ops.select_implementation("cpu")


def test_key_that_is_the_value_object_counts_as_shared() -> None:
    shared = random_case("shared keys")
    same = replace(shared, key=shared.value)
    assert torch.equal(attend(ops, same), attend(ops, shared))


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("value", (2, 93, 3, 32), r"value .* is not \[B, 94, M, D\]"),
        ("value", (1, 94, 3, 32), "sampling_offsets"),
        ("sampling_offsets", (2, 11, 3, 2, 4, 2), "sampling_offsets"),
        ("sampling_offsets", (2, 11, 3, 4, 0, 2), "sampling_offsets"),
        ("sampling_offsets", (2, 11, 3, 4, 4), "sampling_offsets"),
        ("reference_points", (2, 11, 4, 3), "reference_points"),
        ("reference_points", (2, 10, 4, 2), "reference_points"),
        ("query", (2, 11, 3, 16), "query"),
        ("key", (2, 94, 3, 16), "key"),
    ],
)
def test_contradicting_shapes_are_refused(field: str, shape: tuple[int, ...], message: str) -> None:
    case = replace(random_case("separate keys"), **{field: torch.zeros(shape)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        attend(ops, case)


def test_logits_that_do_not_fit_the_points_are_refused() -> None:
    case = replace(random_case("plain"), logits=torch.zeros(2, 11, 3, 15))
    with pytest.raises(ValueError, match="attention_logits"):
        attend(ops, case)


@pytest.mark.parametrize("shapes", [(), ((0, 5),), ((-2, -3),)])
def test_levels_without_pixels_are_refused(shapes: tuple[tuple[int, int], ...]) -> None:
    case = replace(random_case("plain"), spatial_shapes=shapes)
    with pytest.raises(ValueError, match="spatial_shapes"):
        attend(ops, case)


def test_package_reads_no_environment_variables() -> None:
    for source in Path(ops.__file__).parent.glob("*.py"):
        text = source.read_text(encoding="utf-8")
        assert "environ" not in text, source.name
        assert "getenv" not in text, source.name
