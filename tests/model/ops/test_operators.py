"""The kernels as torch operators: tracing, autograd, and the modules that they import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from model import ops
from tests.model.ops.attention_cases import KINDS, Case, Implementation, Kind, attend, random_case


def _arguments(case: Case) -> tuple[object, ...]:
    shapes = [side for shape in case.spatial_shapes for side in shape]
    located = (shapes, case.reference_points, case.sampling_offsets)
    if case.query is None:
        return (case.value, *located, case.logits)
    return (case.query, case.key, case.value, *located)


@pytest.mark.filterwarnings("default")  # torch's own tracing code warns
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "reference_grad",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["no ref grad", "ref grad"],
)
def test_operators_pass_opcheck(kind: Kind, reference_grad: bool) -> None:
    case = random_case(kind, channels=16, queries=5).mapped(torch.float32, leaf=True)
    case.reference_points.requires_grad_(reference_grad)
    name = "ms_deform_attn" if kind == "plain" else "key_aware_deform_attn"
    operator = getattr(torch.ops.lite_detr, name).default
    torch.library.opcheck(operator, _arguments(case))


@pytest.mark.filterwarnings("default")  # torch's own tracing code warns
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_reference_points", [pytest.param(False, marks=pytest.mark.slow), True])
def test_backward_operators_pass_opcheck(kind: Kind, of_reference_points: bool) -> None:
    case = random_case(kind, channels=16, queries=5)
    name = "ms_deform_attn" if kind == "plain" else "key_aware_deform_attn"
    operator = getattr(torch.ops.lite_detr, f"{name}_backward").default
    arguments = (torch.randn(2, 5, 48), *_arguments(case), of_reference_points)
    torch.library.opcheck(operator, arguments)


@pytest.mark.filterwarnings("default")  # torch's own tracing code warns
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", KINDS)
def test_tracing_for_torch_compile_finds_one_whole_graph(kind: Kind) -> None:
    case = random_case(kind, channels=16, queries=5)

    def attention(value: torch.Tensor) -> torch.Tensor:
        return attend(ops, replace(case, value=value))

    traced = torch.compile(attention, backend="eager", fullgraph=True)
    assert torch.equal(traced(case.value), attention(case.value))


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_refused(compiled: Implementation, kind: Kind) -> None:
    case = random_case(kind).mapped(torch.float32, leaf=True)
    output = attend(compiled, case).square().sum()
    (first,) = torch.autograd.grad(output, case.value, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        first.sum().backward()


@pytest.mark.usefixtures("compiled")
@pytest.mark.slow
def test_using_the_operators_does_not_import_the_torch_compiler() -> None:
    program = """
import sys, torch
from tests.model.ops.attention_cases import attend, random_case
from model.ops import operators
attend(operators, random_case("shared keys").mapped(torch.float32, leaf=True)).sum().backward()
sys.exit("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 0
