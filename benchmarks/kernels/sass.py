"""Static costs of the GPU kernels, without a GPU: registers, stack, instructions per query.

    python -m benchmarks.kernels.sass [--architectures 75 80 86 89 90 100 120]

Compiles the kernels for 4 levels, 4 points, 8 heads of 32 channels, where a warp computes one
query, and reads NVIDIA's disassembly. Instructions per query are those that a warp executes (or
four warps, where a query's points are split): all instructions once, those of loops without other
loops in them times their iterations, without NOPs. The forward pass has one such loop, over groups
of points; the backward pass has two over points and small ones over what a lane writes. Predicated
instructions count whether or not they take effect. Requires the packages nvidia-cuda-nvrtc,
nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm and cuda-bindings.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch

from model.ops.cuda_norm import NormVariant
from model.ops.nvrtc import TYPES, Kind, Variant, machine_code

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
KINDS: tuple[Kind, ...] = get_args(Kind)
_LEVELS, _POINTS = 4, 4
_CORNERS = 4
_TOOL_LIMIT_SECONDS = 120.0


class ToolMissingError(Exception):
    """One of NVIDIA's disassemblers is not installed."""


@dataclass(frozen=True)
class Usage:
    """What one kernel needs of a multiprocessor."""

    registers: int  # per thread
    stack_bytes: int  # per thread; above 0: spilled registers


@dataclass(frozen=True)
class Cost(Usage):
    """Costs of one kernel."""

    instructions: int  # per query, see above
    spills: int  # loads and stores of local memory in the code


def usual(dtype: torch.dtype, kind: Kind, **others: Any) -> Variant:
    """The kernel variant of the published models' encoders; `others`: fields that differ."""
    return Variant(dtype, dtype, kind, 32, 8, _LEVELS, _POINTS, 2, _LEVELS, **others)


def of_decoder(dtype: torch.dtype, kind: Kind) -> Variant:
    """The kernel variant of the published models' decoders: few queries, around boxes."""
    return replace(usual(dtype, kind), reference_size=4, splits=4)


def usage(variant: Variant | NormVariant, architecture: int, cache_dir: Path) -> Usage:
    """Compiles a kernel and reads its header, which is much faster than to disassemble it.

    Raises:
        ToolMissingError: if NVIDIA's disassemblers are not installed.
        BuildError: if NVRTC is not installed.
    """
    with _compiled(variant, architecture, cache_dir) as file:
        return _usage(file)


def cost(variant: Variant | NormVariant, architecture: int, cache_dir: Path) -> Cost:
    """Compiles a kernel and reads its costs.

    Raises:
        ToolMissingError: if NVIDIA's disassemblers are not installed.
        BuildError: if NVRTC is not installed.
    """
    with _compiled(variant, architecture, cache_dir) as file:
        used = _usage(file)
        # Without the analysis of data flow, which takes a third of the time.
        listing = _output("nvdisasm", "-c", "-ndf", str(file))
    return Cost(
        registers=used.registers,
        stack_bytes=used.stack_bytes,
        instructions=getattr(variant, "splits", 1) * _executed(listing, variant),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", listing)),
    )


@contextmanager
def _compiled(variant: Variant | NormVariant, architecture: int, cache_dir: Path) -> Iterator[Path]:
    """A file with the machine code of a kernel."""
    code = machine_code(variant, divmod(architecture, 10), cache_dir)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "kernel.cubin"
        file.write_bytes(code)
        yield file


def _usage(file: Path) -> Usage:
    header = _output("cuobjdump", "-res-usage", str(file))
    used = re.search(r"REG:(\d+) STACK:(\d+)", header)
    assert used is not None, header
    return Usage(registers=int(used[1]), stack_bytes=int(used[2]))


def _iterations(variant: Variant | NormVariant, body: list[str]) -> int:
    """How often a loop with these instructions runs."""
    assert isinstance(variant, Variant), "only the kernels of attention have loops"
    points = variant.levels * variant.points
    if variant.backward:
        # Loops over points load four corners; the others write what the row's four lanes share.
        loads = sum("LDG.E.128" in text for text in body)
        return points if loads >= _CORNERS else -(-points // 4)
    group = 4 if variant.value_type != torch.float32 and variant.kind != "separate_keys" else 2
    return points // (group * variant.splits)


def _executed(listing: str, variant: Variant | NormVariant) -> int:
    """Instructions that a warp executes."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"^\s+/\*[0-9a-f]+\*/\s+(.+?)\s*;", line):
            instructions.append(found[1])
    loops = set()
    for place, instruction in enumerate(instructions):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction)
        if target and labels[target[1]] < place:
            loops.add((labels[target[1]], place))
    total = sum(not _idle(text) for text in instructions)
    for first, last in loops:
        if any(first <= other[0] and other[1] <= last for other in loops - {(first, last)}):
            continue  # with another loop in it: over what a warp computes after another
        body = [text for text in instructions[first : last + 1] if not _idle(text)]
        total += (_iterations(variant, body) - 1) * len(body)
    return total


def _idle(instruction: str) -> bool:
    """True for NOPs and for the branch to itself at the code's end, which is never executed."""
    return bool(re.search(r"^NOP\b", instruction) or re.match(r"^BRA `\(", instruction))


def _output(tool: str, *arguments: str) -> str:
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = sorted(packages.glob(f"*/bin/{tool}"))
    if not found:
        raise ToolMissingError(f"{tool} is not installed (package nvidia-cuda-{tool})")
    done = subprocess.run(
        [str(found[-1]), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=_TOOL_LIMIT_SECONDS,
    )
    return done.stdout


def main() -> None:
    """Prints one line per kernel."""
    parser = argparse.ArgumentParser(description="Static costs of the GPU kernels.")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    arguments = parser.parse_args()
    print(
        f"{'sm':>4} {'pass':16} {'type':14} {'kind':14} {'registers':>9} {'stack':>6} "
        f"{'spills':>6} {'instructions':>12}"
    )
    with tempfile.TemporaryDirectory() as cache:
        for architecture, dtype, kind in product(arguments.architectures, TYPES, KINDS):
            for name, variant in _variants(dtype, kind).items():
                row = cost(variant, architecture, Path(cache))
                print(
                    f"{architecture:4} {name:16} {str(dtype).removeprefix('torch.'):14} {kind:14} "
                    f"{row.registers:9} {row.stack_bytes:6} {row.spills:6} {row.instructions:12}",
                    flush=True,
                )


def _variants(dtype: torch.dtype, kind: Kind) -> dict[str, Variant]:
    return {
        "encoder": usual(dtype, kind),
        "decoder": of_decoder(dtype, kind),
        "backward": usual(dtype, kind, backward=True),
        "sums of integers": usual(dtype, kind, backward=True, deterministic=True),
    }


if __name__ == "__main__":
    main()
