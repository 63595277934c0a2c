"""The difference of each precision to the official float64 outputs, on the reference cases.

    python -m benchmarks.model.precision [--output FOLDER]

Needs shared/reference next to the checkout. "memory" is the encoder's output (standard deviation
about 1); "found" is the share of the 300 official detections per image that have a match: same
class, score within 0.02 and box within 1 % of the image's size. The weights are random, so scores
lie close together and near ties of the query selection swap: a trained model loses less. Writes
precision.json and precision.md.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import RESULTS, conditions, table, write_report
from model import build_detector
from model.network.inference import prepare_for_inference
from model.network.precision import resolve_precision
from model.postprocess import select_detections
from service.cpus import usable_cpus
from tests.support import reference_cases

_SCORE, _BOX = 0.02, 0.01  # tolerances of a match; boxes relative to the image's size


@dataclass(frozen=True)
class Row:
    """Differences of one precision on one case."""

    case: str
    precision: str
    memory_largest: float
    memory_rms: float
    found: float  # share of the official detections


def measure(name: str, precision: str) -> Row:
    """Runs a reference case in a precision ("fp32", "bf16")."""
    case = reference_cases.load_case(name)
    detector = build_detector(reference_cases.config_of(case.meta)).eval()
    detector.load_state_dict(reference_cases.weights_of(case.meta), strict=True)
    images, mask = reference_cases.batch_of(case.arrays, torch.float32)
    output = prepare_for_inference(detector, resolve_precision(precision, "cpu")[1])(images, mask)
    difference = output.memory.double() - torch.from_numpy(case.arrays["memory"]).double()
    sizes = [tuple(map(int, case.arrays[f"target_size_{i}"])) for i in range(len(images))]
    results = select_detections(output.pred_logits, output.pred_boxes, sizes, 300)  # type: ignore[arg-type]
    shares = [_found(case.arrays, i, results[i], sizes[i]) for i in range(len(images))]
    return Row(
        name,
        precision,
        float(difference.abs().max()),
        float(difference.square().mean().sqrt()),
        float(np.mean(shares)),
    )


def _found(arrays: dict[str, Any], index: int, ours: Any, size: tuple[int, ...]) -> float:
    """The share of an image's official detections that have a match in ours."""
    height, width = size
    limits = np.array([width, height, width, height], dtype=np.float32)
    official = zip(
        *(arrays[f"{field}_{index}"] for field in ("scores", "labels", "boxes")), strict=True
    )
    matched = []
    for score, label, box in official:
        near = (ours.labels == label) & (np.abs(ours.scores - score) <= _SCORE)
        distances = np.abs(ours.boxes_xyxy - np.clip(box, 0, limits)).max(-1)
        matched.append(bool((near & (distances <= _BOX * max(size))).any()))
    return float(np.mean(matched))


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Compare precisions with float64.")
    parser.add_argument("--output", type=Path, default=RESULTS / "model")
    output = parser.parse_args().output
    document = conditions()
    torch.set_num_threads(usable_cpus())
    with torch.inference_mode():
        rows = [
            measure(name, precision)
            for name in reference_cases.case_names()
            for precision in ("fp32", "bf16")
        ]
    document["rows"] = [asdict(row) for row in rows]
    cells = [
        (
            row.case,
            row.precision,
            f"{row.memory_largest:.2g}",
            f"{row.memory_rms:.2g}",
            f"{row.found:.1%}",
        )
        for row in rows
    ]
    columns = ("case", "precision", "memory, largest", "memory, rms", "detections found")
    sections = ["The weights are random, so near ties are frequent.\n", table(columns, cells, 2)]
    title = "Precisions against the official float64 outputs"
    write_report(output / "precision", title, document, sections)


if __name__ == "__main__":
    main()
