"""Bytes, kernels and least time of a batch on a GPU, counted without one.

    python -m benchmarks.gpu.roofline [--model NAME] [--batch 1] [--size 832 1344]

Runs `Predictor.detect` on shapes only and adds up, for every kernel that torch launches on a GPU,
the bytes that it reads and writes and its products. A kernel takes at least its bytes at the
bandwidth of the memory or its products at the peak rate, whichever is longer, and the gap to the
next kernel of a CUDA graph. The sum is a floor: caches may keep what was just written, and no
kernel reaches a peak. A test holds the counts of an image, so that a change that adds passes is
seen without a GPU.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import VARIANTS, build_detector, ops
from model.config import ModelConfig
from model.network import cuda_fusion, onednn
from model.network.inference import prepare_for_inference
from model.ops import operators
from model.predictor import Predictor
from tests.support.host_transfers import to_meta

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Operators that return a view, or memory that nothing fills.
_FREE = frozenset(
    {"view", "expand", "permute", "transpose", "slice", "select", "unsqueeze", "split", "squeeze"}
    | {"split_with_sizes", "t", "alias", "unbind", "detach", "as_strided", "chunk", "empty"}
    | {"new_empty", "empty_like", "empty_strided", "_unsafe_view", "lift_fresh"}
)
_IN_PASSES = ("convolution", "conv2d")  # the latter in inference mode
_CONVOLUTIONS = (*_IN_PASSES, "cudnn_convolution_relu", "cudnn_convolution_add_relu")
# Kernels of an operator, where torch launches more than one.
_KERNELS = {"native_group_norm": 3, "topk": 5, "searchsorted": 2, "cumsum": 2, "mean": 1}


@dataclass(frozen=True)
class Card:
    """What a GPU can do at most."""

    name: str
    bytes_per_second: float  # of its memory, as copies reach it
    products_per_second: float  # floating-point operations of matrix products in 16-bit types
    float32_per_second: float  # the same in float32, without TF32
    gap_seconds: float = 2e-6  # between two kernels of a CUDA graph, with the start of the next
    attention_seconds: float = 40e-6  # of the key-aware kernel for 22,223 queries in float16: aim


H200 = Card("H200", 3.8e12, 550e12, 45e12)
_ATTENTION_QUERIES = 22_223


@dataclass
class Cost:
    """What the kernels of one operator move and compute, in total."""

    kernels: int = 0
    bytes: int = 0
    operations: int = 0
    seconds: float = 0.0

    def add(self, kernels: int, moved: int, operations: int, seconds: float) -> None:
        """Adds the kernels of one call."""
        self.kernels += kernels
        self.bytes += moved
        self.operations += operations
        self.seconds += seconds


@dataclass
class Counts:
    """The costs of a batch, by operator."""

    batch: int
    card: Card
    by_operator: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))

    @property
    def kernels(self) -> int:
        """Launched for the batch."""
        return sum(cost.kernels for cost in self.by_operator.values())

    @property
    def bytes_per_image(self) -> float:
        """Read and written."""
        return sum(cost.bytes for cost in self.by_operator.values()) / self.batch

    @property
    def seconds(self) -> float:
        """The least time of the batch."""
        return sum(cost.seconds for cost in self.by_operator.values())


class CountKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what the operators of a computation cost on a GPU; shapes only."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator on shapes and adds its cost."""
        del types
        name = func.overloadpacket.__name__
        result = (
            FUSED[name](*args, **(kwargs or {})) if name in FUSED else func(*args, **kwargs or {})
        )
        if name not in _FREE and not _is_view(args, result):
            self._add(name, args, kwargs, result)
        return result

    def _add(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        given, returned = _tensors((args, kwargs)), _tensors(result)
        moved = sum(map(_bytes, given)) + sum(map(_bytes, returned))
        kernels, operations = _KERNELS.get(name, 1), 0
        if name in _CONVOLUTIONS:
            weight = args[1]
            operations = 2 * returned[0].numel() * weight.numel() // weight.shape[0]
            # A pass for the bias, for depthwise ones too: channels last, they are cuDNN's.
            if name in _IN_PASSES and args[2] is not None:
                kernels, moved = 2, moved + 2 * _bytes(returned[0])
        elif name in ("addmm", "_addmm_activation", "mm", "bmm", "baddbmm"):
            left = args[-2]
            operations = 2 * returned[0].numel() * left.shape[-1]
            if name == "baddbmm":  # the first argument is copied into the result and read there
                kernels, moved = 2, moved + 2 * _bytes(returned[0])
        elif name == "native_group_norm":  # a copy to planes, and a second reading
            moved += 3 * _bytes(args[0])
        elif name == "copy_":  # does not read what it overwrites
            moved -= _bytes(args[0])
        elif "out" in (kwargs or {}):
            moved -= _bytes(kwargs["out"])
        self.add(name, kernels, moved, operations, returned)

    def add(
        self, name: str, kernels: int, moved: int, operations: int, returned: Sequence[Tensor]
    ) -> None:
        """Adds kernels by hand, for an operator that torch decomposes on this device."""
        card = self._counts.card
        sixteen_bit = bool(returned) and returned[0].element_size() == 2  # noqa: PLR2004
        rate = card.products_per_second if sixteen_bit else card.float32_per_second
        seconds = max(moved / card.bytes_per_second, operations / rate)
        if "deform_attn" in name:
            queries = returned[0].shape[0] * returned[0].shape[1]
            seconds = max(seconds, card.attention_seconds * queries / _ATTENTION_QUERIES)
        label = (
            name if sixteen_bit else f"{name} ({str(returned[0].dtype)[6:] if returned else ''})"
        )
        self._counts.by_operator[label].add(
            kernels, moved, operations, seconds + kernels * card.gap_seconds
        )


class _OneAttention(TorchFunctionMode):
    """Counts `scaled_dot_product_attention` as the one kernel that it is on a GPU."""

    def __init__(self, counter: CountKernels) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Counts the attention, and calls everything else."""
        del types
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key = args[:2]
        result = torch.empty_strided(query.shape, query.stride(), dtype=query.dtype, device="meta")
        operations = 4 * query.numel() * key.shape[-2]
        moved = sum(map(_bytes, args[:3])) + _bytes(result)
        self._counter.add("attention among queries", 1, moved, operations, [result])
        return result


def _convolved(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, padding, dilation, _ = rest[-4:]
    sides = [
        (side + 2 * p - d * (kernel - 1) - 1) // s + 1
        for side, kernel, s, p, d in zip(
            x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    result = x.new_empty(x.shape[0], weight.shape[0], *sides)
    return result.contiguous(memory_format=torch.channels_last)


# The fused operators on shapes; torch has them for CUDA tensors only.
FUSED: dict[str, Callable[..., Tensor]] = {
    "cudnn_convolution_relu": _convolved,
    "cudnn_convolution_add_relu": _convolved,
    "_addmm_activation": lambda bias, rows, weight, **_: rows.new_empty(
        rows.shape[0], weight.shape[1]
    ),
}


def count(
    config: ModelConfig,
    batch: int,
    padded: tuple[int, int],
    dtype: torch.dtype = torch.float16,
    card: Card = H200,
) -> Counts:
    """Counts the kernels of a batch as `Predictor.detect` launches them on a GPU.

    Args:
        config: the architecture.
        batch: images.
        padded: (H, W) of the shape bucket.
        dtype: of the inference form.
        card: the GPU.
    """
    counts = Counts(batch, card)
    with as_on_a_gpu(), torch.inference_mode():
        network = prepare_for_inference(build_detector(config).eval(), dtype)
        to_meta(network)
        predictor = Predictor(network, config, "meta")
        pixels = torch.empty(batch, *padded, 3, dtype=torch.uint8, device="meta")
        sizes = torch.empty(batch, 2, dtype=torch.int32, device="meta")
        with CountKernels(counts) as counter, _OneAttention(counter):
            predictor.detect(pixels, sizes)
    return counts


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Makes the network choose what it chooses for a GPU, on any device."""
    with ExitStack() as replaced:
        for module, name, value in (
            (onednn, "is_available", lambda *_: False),
            (cuda_fusion, "can_convolve", lambda _, dtype: dtype != torch.float32),
            (cuda_fusion, "can_multiply", lambda *_: True),
            (ops, "_implementation", lambda *_: operators),
        ):
            replaced.enter_context(mock.patch.object(module, name, value))
        yield


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements in memory: those of an expanded dimension count once."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1
    for side, stride in sides:
        elements *= side if stride != 0 or side == 0 else 1
    return elements * tensor.element_size()


def _is_view(args: Any, result: Any) -> bool:
    """Whether a function that may copy has returned its argument's memory."""
    given, returned = _tensors(args), _tensors(result)
    if len(returned) != 1 or not given or returned[0] is given[0]:
        return False
    return bool(returned[0].untyped_storage()._cdata == given[0].untyped_storage()._cdata)


def main() -> None:
    """Prints the counts of a batch."""
    parser = argparse.ArgumentParser(description="Count the bytes and kernels of a batch.")
    parser.add_argument("--model", choices=VARIANTS, default="lite-dino-r50-h3l1-2p1x3")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(832, 1344), metavar=("H", "W"))
    parser.add_argument("--precision", choices=DTYPES, default="fp16")
    options = parser.parse_args()
    counts = count(
        VARIANTS[options.model], options.batch, tuple(options.size), DTYPES[options.precision]
    )
    print(
        f"{options.model}, batch {options.batch} of {options.size}, {options.precision}: "
        f"{counts.kernels} kernels, {counts.bytes_per_image / 1e9:.2f} GB an image, at least "
        f"{1e3 * counts.seconds:.2f} ms on {counts.card.name}: {counts.batch / counts.seconds:.0f} "
        "images per second"
    )
    ranked = sorted(counts.by_operator.items(), key=lambda item: -item[1].seconds)
    for name, cost in ranked:
        print(
            f"  {name:40s} {cost.kernels:5d} kernels {1e3 * cost.seconds:8.3f} ms "
            f"{cost.bytes / counts.batch / 1e6:9.1f} MB an image "
            f"{cost.operations / counts.batch / 1e9:8.1f} GFLOP an image"
        )


if __name__ == "__main__":
    main()
