"""CPU time of one optimizer step, with and without the compiled kernels, in float32 and bfloat16.

    python -m benchmarks.model.training_step [--rounds 5] [--threads 1] [--size 416] [--batch 4]

Forward, losses, backward and AdamW of the default model on random images and boxes; the variants
take turns. The CPU time of a step is compared, whose median is robust against other processes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.report import RESULTS, conditions, table, write_report
from model import ops
from model.ops import bottleneck_training
from model.training.batches import Batch
from model.training.objective import Objective
from model.training.optimizer import build_optimizer
from model.training.options import TrainOptions
from model.training.targets import Targets
from model.weights.checkpoint import load_detector
from model.weights.info import DEFAULT_MODEL_PATH

_REPORT = RESULTS / "model" / "training-step"
_BOXES = 6  # of each image
_CLASSES = 5
_MS = 1000


class _Kind(NamedTuple):
    """How a variant computes."""

    attention: ops.Implementation
    blocks: bool  # those of the backbone by kernels; otherwise layer by layer
    precision: torch.dtype | None


_VARIANTS = {
    "plain PyTorch, float32": _Kind("reference", False, None),
    "plain PyTorch, bfloat16": _Kind("reference", False, torch.bfloat16),
    "attention kernels, float32": _Kind("cpu", False, None),
    "attention kernels, bfloat16": _Kind("cpu", False, torch.bfloat16),
    "all kernels, float32": _Kind("cpu", True, None),
    "all kernels, bfloat16": _Kind("cpu", True, torch.bfloat16),
}


def _never(_x: torch.Tensor) -> bool:
    return False


class _Variant:
    """A detector, its losses and its optimizer."""

    def __init__(self, name: str, options: TrainOptions) -> None:
        self.name, self.kind = name, _VARIANTS[name]
        self.detector = load_detector(DEFAULT_MODEL_PATH)[0].train()
        self.detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.detector.body.freeze_stages(options.freeze_backbone_stages)
        self.objective = Objective(self.detector, options, self.kind.precision)
        self.optimizer = build_optimizer(self.detector, options)
        self.times: list[dict[str, float]] = []
        self.losses: list[float] = []

    def step(self, batch: Batch) -> None:
        """One step; keeps its CPU and wall times and its loss."""
        with ExitStack() as stack:
            stack.enter_context(ops.computed_by(self.kind.attention))
            if not self.kind.blocks:
                stack.enter_context(mock.patch.object(bottleneck_training, "takes", _never))
            cpu, wall = time.process_time(), time.perf_counter()
            losses = self.objective.losses(batch)
            forward = time.process_time()
            torch.autograd.backward(losses.total)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.times.append(
                {
                    "cpu_ms": (time.process_time() - cpu) * _MS,
                    "forward_cpu_ms": (forward - cpu) * _MS,
                    "wall_ms": (time.perf_counter() - wall) * _MS,
                }
            )
        self.losses.append(float(losses.total.detach()))


def main() -> None:
    """Measures, and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=416, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--report", type=Path, default=_REPORT, help="without a suffix")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options = TrainOptions(output=Path("unused"), device="cpu", freeze_backbone_stages=1)
    before = conditions()
    variants = [_Variant(name, options) for name in _VARIANTS]
    batch = _random_batch(given.batch, given.size)
    for number in range(given.rounds + 1):
        for variant in variants:
            torch.manual_seed(number)
            variant.step(batch)
    _write(given, before, variants)


def _random_batch(count: int, size: int) -> Batch:
    torch.manual_seed(0)
    centres, sides = torch.rand(count, _BOXES, 2) * 0.8 + 0.1, torch.rand(count, _BOXES, 2) * 0.15
    return Batch(
        torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8),
        torch.zeros(count, size, size, dtype=torch.bool),
        Targets(
            torch.randint(0, _CLASSES, (count, _BOXES)),
            torch.cat([centres, sides + 0.03], -1),
            torch.ones(count, _BOXES, dtype=torch.bool),
        ),
    )


def _write(given: argparse.Namespace, before: dict[str, Any], variants: list[_Variant]) -> None:
    found = {
        variant.name: {
            name: statistics.median(each[name] for each in variant.times[1:])  # after a warm-up
            for name in variant.times[0]
        }
        for variant in variants
    }
    first = found[variants[0].name]["cpu_ms"]
    rows = [
        [
            name,
            f"{found[name]['cpu_ms']:.0f}",
            f"{found[name]['forward_cpu_ms']:.0f}",
            f"{found[name]['cpu_ms'] / first:.2f}",
            f"{losses[-1]:.2f}",
        ]
        for name, losses in ((variant.name, variant.losses) for variant in variants)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sections = [
        f"The default model, {given.batch} images of {given.size}x{given.size}, {given.threads} "
        f"thread(s), {given.rounds} rounds in turns; median CPU time of a step. AMX: "
        f"{'yes' if torch.cpu._is_amx_tile_supported() else 'no'}. All of them together took "
        f"{peak:.0f} MiB.\n",
        table(["variant", "CPU ms", "of it forward", "of the first", "loss at the end"], rows),
    ]
    losses = {variant.name: variant.losses for variant in variants}
    document = {**before, "torch": torch.__version__, "variants": found, "losses": losses}
    write_report(given.report, "A training step on the CPU", document, sections)


if __name__ == "__main__":
    main()
