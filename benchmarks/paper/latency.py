"""Time per image of every row of the paper's tables, with random weights, on this machine.

    python -m benchmarks.paper.latency [--device cuda] [--rounds N]

The inference form in float32, one image of 800x1066 pixels. CPU seconds hold on a busy machine,
too; wall times do not, so compare them within one run.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.paper.complexity import baseline_of
from benchmarks.report import RESULTS, conditions, write_report
from model import VARIANTS, build_detector
from model.network.inference import prepare_for_inference
from model.published import PUBLISHED

_SIZE = (800, 1066)  # (H, W) of a 4:3 image after the resize
_NOTE = """
Random weights: the time does not depend on them. `of the baseline` compares the CPU seconds (on a
GPU: wall times) with the baseline of the same detector and backbone.
"""


def measure(name: str, device: str, rounds: int) -> tuple[float, float]:
    """Median wall seconds and CPU seconds of one image."""
    torch.manual_seed(0)
    detector = build_detector(VARIANTS[name]).to(device).eval()
    network = prepare_for_inference(detector)
    images = torch.randn(1, 3, *_SIZE, device=device)
    mask = torch.zeros(1, *_SIZE, dtype=torch.bool, device=device)
    walls, cpus = [], []
    with torch.inference_mode():
        for _ in range(rounds + 1):  # the first one warms up
            wall, cpu = time.perf_counter(), time.process_time()
            network(images, mask)
            if device != "cpu":
                torch.cuda.synchronize()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return statistics.median(walls[1:]), statistics.median(cpus[1:])


def main() -> None:
    """Measures all rows and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = {name: measure(name, arguments.device, arguments.rounds) for name in PUBLISHED}
    compared = 1 if arguments.device == "cpu" else 0
    table = ["| model | seconds | CPU seconds | of the baseline |", "|---|---:|---:|---:|"]
    rows = []
    for name, (wall, cpu) in found.items():
        share = found[name][compared] / found[baseline_of(name)][compared]
        rows.append({"name": name, "seconds": wall, "cpu_seconds": cpu, "of_the_baseline": share})
        table.append(f"| {name} | {wall:.2f} | {cpu:.2f} | {share:.2f} |")
    document = {**conditions(), "torch": torch.__version__, "size": _SIZE, "rows": rows}
    path = RESULTS / "paper" / f"latency-{torch.device(arguments.device).type}"
    sections = ["\n".join(table), _NOTE.strip()]
    write_report(path, f"Time per image ({arguments.device})", document, sections)


if __name__ == "__main__":
    main()
