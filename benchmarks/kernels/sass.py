"""Static costs of the GPU kernels, without a GPU: registers, stack, instructions per query.

    python -m benchmarks.kernels.sass [--architectures 75 80 86 89 90 100 120]

Compiles the kernels for 4 levels, 4 points, 8 heads of 32 channels, where a warp computes one
query, and reads NVIDIA's disassembly. Instructions per query are those that a warp executes: all
instructions once, those of the one loop (over groups of points) times its iterations, without
NOPs. Predicated instructions count whether or not they take effect. Requires the packages
nvidia-cuda-nvrtc, nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm and cuda-bindings.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from model.ops.nvrtc import TYPES, Kind, Variant, machine_code

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
KINDS: tuple[Kind, ...] = get_args(Kind)
_LEVELS, _POINTS = 4, 4
# Iterations of the loop; False: float32 and separate keys, which take two points at a time.
_ITERATIONS = {True: 4, False: 8}
_TOOL_LIMIT_SECONDS = 120.0


class ToolMissingError(Exception):
    """One of NVIDIA's disassemblers is not installed."""


@dataclass(frozen=True)
class Cost:
    """Costs of one kernel."""

    registers: int  # per thread
    stack_bytes: int  # per thread; above 0: spilled registers
    instructions: int  # per query, see above
    spills: int  # loads and stores of local memory in the code


def usual(dtype: torch.dtype, kind: Kind) -> Variant:
    """The kernel variant of the published models' encoders."""
    return Variant(dtype, dtype, kind, 32, 8, _LEVELS, _POINTS, 2, _LEVELS)


def cost(variant: Variant, architecture: int, cache_dir: Path) -> Cost:
    """Compiles a kernel and reads its costs.

    Raises:
        ToolMissingError: if NVIDIA's disassemblers are not installed.
        BuildError: if NVRTC is not installed.
    """
    code = machine_code(variant, divmod(architecture, 10), cache_dir)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "kernel.cubin"
        file.write_bytes(code)
        usage = _output("cuobjdump", "-res-usage", str(file))
        listing = _output("nvdisasm", "-c", str(file))
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert used is not None, usage
    one_group_a_level = variant.value_type != torch.float32 and variant.kind != "separate_keys"
    return Cost(
        registers=int(used[1]),
        stack_bytes=int(used[2]),
        instructions=_executed(listing, _ITERATIONS[one_group_a_level]),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", listing)),
    )


def _executed(listing: str, iterations: int) -> int:
    """Instructions that a warp executes if the code's only loop has so many iterations."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"^\s+/\*[0-9a-f]+\*/\s+(.+?)\s*;", line):
            instructions.append(found[1])
    loops = []
    for place, instruction in enumerate(instructions):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction)
        if target and labels[target[1]] < place:
            loops.append((labels[target[1]], place))
    ((first, last),) = loops
    body = sum(not _idle(text) for text in instructions[first : last + 1])
    rest = [*instructions[:first], *instructions[last + 1 :]]
    return sum(not _idle(text) for text in rest) + iterations * body


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
    print(f"{'sm':>4} {'type':14} {'kind':14} {'registers':>9} {'stack':>6} {'instructions':>12}")
    with tempfile.TemporaryDirectory() as cache:
        for architecture in arguments.architectures:
            for dtype in TYPES:
                for kind in KINDS:
                    row = cost(usual(dtype, kind), architecture, Path(cache))
                    name = str(dtype).removeprefix("torch.")
                    sizes = f"{row.registers:9} {row.stack_bytes:6} {row.instructions:12}"
                    print(f"{architecture:4} {name:14} {kind:14} {sizes}", flush=True)


if __name__ == "__main__":
    main()
