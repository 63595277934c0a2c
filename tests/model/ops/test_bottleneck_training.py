"""Blocks in training: results and gradients are those of plain convolutions."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import ops
from model.network.backbone.efficientnet import EfficientNetLite0, InvertedBottleneck
from model.ops import bottleneck_training, cpu
from model.ops.bottlenecks import Bottleneck, Folded

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="needs the compiled kernels"),
    pytest.mark.usefixtures("one_and_three_threads"),
]


class Kind(NamedTuple):
    """A block: channels before, between and after its convolutions, and its depthwise one."""

    inputs: int
    width: int
    outputs: int
    kernel: int
    stride: int
    expands: bool = True


KINDS = {
    "3x3, stride 2": Kind(16, 96, 24, 3, 2),
    "5x5, residual": Kind(24, 144, 24, 5, 1),
    "5x5, stride 2": Kind(80, 480, 112, 5, 2),
    "3x3, residual, one group": Kind(8, 32, 8, 3, 1),
    "without expansion": Kind(32, 32, 16, 3, 1, expands=False),
    "without expansion, stride 2": Kind(16, 16, 16, 5, 2, expands=False),
}


class Case:
    """A block with random weights, and an input with zeros, negative and large values."""

    def __init__(self, kind: Kind, batch: int, size: tuple[int, int]) -> None:
        torch.manual_seed(kind.width + kind.kernel + size[0])
        shapes = [
            *([(kind.width, kind.inputs, 1, 1), (kind.width,)] if kind.expands else []),
            *[(kind.width, 1, kind.kernel, kind.kernel), (kind.width,)],
            *[(kind.outputs, kind.width, 1, 1), (kind.outputs,)],
        ]
        self.kind = kind
        self.x = torch.randn(batch, kind.inputs, *size) * 3
        self.weights = [torch.randn(shape) / max(1.0, (3 * shape[1:].numel()) ** 0.5 - 1)
                        for shape in map(torch.Size, shapes)]  # fmt: skip

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        return [each.to(dtype).clone().requires_grad_() for each in (self.x, *self.weights)]

    def block(self, weights: list[Tensor]) -> Bottleneck:
        pairs = [Folded(*weights[place : place + 2]) for place in range(0, len(weights), 2)]
        expand = pairs.pop(0) if self.kind.expands else None
        depthwise, project = pairs
        residual = self.kind.stride == 1 and self.kind.inputs == self.kind.outputs
        return Bottleneck(expand, depthwise, project, self.kind.stride, residual)

    def expected(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Result and gradients in float64, convolution by convolution."""
        x, *weights = inputs = self.inputs(torch.float64)
        block = self.block(weights)
        inner = x if block.expand is None else F.relu6(F.conv2d(x, *block.expand))
        kernel = self.kind.kernel
        inner = F.conv2d(inner, *block.depthwise, block.stride, kernel // 2, groups=self.kind.width)
        result = F.conv2d(F.relu6(inner), *block.project)
        result = result + x if block.residual else result
        return result, torch.autograd.grad(result, inputs, self.grad(result))

    def found(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, *weights = inputs = self.inputs(torch.float32)
        result = bottleneck_training.run(x, self.block(weights))
        return result, torch.autograd.grad(result, inputs, self.grad(result))

    @staticmethod
    def grad(result: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(result.shape, generator=generator).to(result.dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 13), (20, 33)], ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_results_and_gradients_are_those_of_plain_convolutions(
    kind: Kind, size: tuple[int, int]
) -> None:
    assert_gradients(kind, size)


def assert_gradients(kind: Kind, size: tuple[int, int]) -> None:
    """Compares with plain convolutions in float64."""
    case = Case(kind, 2, size)
    (result, grads), (expected, expected_grads) = case.found(), case.expected()
    assert distance(result, expected) < 2e-6
    for found, wanted in zip(grads, expected_grads, strict=True):
        assert distance(found, wanted) < 3e-6


def test_under_autocast_maps_are_bfloat16_and_gradients_as_the_weights() -> None:
    case = Case(KINDS["5x5, residual"], 2, (12, 15))
    with torch.autocast("cpu", torch.bfloat16):
        result, grads = case.found()
    expected, expected_grads = case.expected()
    assert result.dtype == torch.bfloat16
    assert {grad.dtype for grad in grads} == {torch.float32}
    assert distance(result, expected) < 0.02
    for found, wanted in zip(grads, expected_grads, strict=True):
        # Of the norms: where a map is at an end of ReLU6, rounding turns a gradient on or off.
        assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    case, given = Case(KINDS["5x5, stride 2"], 3, (20, 22)), []
    x, weight = case.x.relu()[:, :64].permute(0, 2, 3, 1).contiguous(), torch.randn(5, 5, 64)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        output = bottleneck_training.depthwise(
            x, weight, torch.randn(64, generator=torch.Generator().manual_seed(2)), 2,
            input_relu6=True,
        )  # fmt: skip
        grads = bottleneck_training.depthwise_gradients(
            output, x, weight, output, 2, of_input=True, input_relu6=True
        )
        given.append((grads.input, grads.input_sum, grads.weight, grads.bias))
    for one, other in zip(*given, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_narrow_results_are_rounded_as_torch_rounds() -> None:
    odd = torch.tensor([1.00390625, 1.01171875, 3e38, -0.0, 1e-40, float("nan"), float("inf")])
    bias = odd.repeat(16)[:64]
    x = torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16)
    found = bottleneck_training.depthwise(x, torch.zeros(3, 3, 64), bias, 1, input_relu6=False)
    expected = F.relu6(bias).to(torch.bfloat16)
    assert torch.equal(found[0, 0, 0].nan_to_num(nan=-1), expected.nan_to_num(nan=-1))


def gradients_of(network: EfficientNetLite0, images: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    sum(level.square().mean() for level in network(images)).backward()  # type: ignore[union-attr]
    named = network.named_parameters()
    return {name: each.grad.clone() for name, each in named if each.grad is not None}


def test_a_backbone_has_the_same_gradients_with_and_without_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(3)
    network, images = EfficientNetLite0().train(), torch.randn(2, 3, 64, 96)
    network.freeze_stages(2)
    run, blocks = bottleneck_training.run, list[Bottleneck]()

    def counted(x: Tensor, block: Bottleneck) -> Tensor:
        blocks.append(block)
        return run(x, block)

    monkeypatch.setattr(bottleneck_training, "run", counted)
    found = gradients_of(network, images)
    assert len(blocks) == 16
    with ops.computed_by("reference"):
        expected = gradients_of(network, images)
    assert len(blocks) == 16
    assert found.keys() == expected.keys()
    assert not any(name.startswith(("conv_stem", "blocks.2.")) for name in found)
    for name, wanted in expected.items():
        assert distance(found[name], wanted) < 1e-3, name


@pytest.mark.parametrize("case", ["no gradients", "float64", "float16", "compiled"])
def test_other_calls_take_the_plain_path(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = InvertedBottleneck(16, 24, 6, 3, 2), torch.randn(1, 16, 8, 8)
    expected = block(x)
    monkeypatch.setattr(bottleneck_training, "run", lambda *_: pytest.fail("not plain"))
    if case == "no gradients":
        with torch.no_grad():
            found = block(x)
    elif case == "float64":
        found = block.double()(x.double())
    elif case == "float16":
        with torch.autocast("cpu", torch.float16):
            found = block(x)
    else:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        found = block(x)
    assert distance(found.float(), expected) < 0.02
