"""What each precision changes: with the shipped weights, and on the reference cases.

    python -m benchmarks.model.precision [--cache FOLDER] [--output FOLDER]

float16, TF32 and the float32 of a GPU are emulated on the CPU, with the layers as a GPU has them:
float16 is stored and summed in float32 (`drift.emulated`). Because of this measurement "auto" is
float32 on GPUs, too. Tests hold its limits: on samples, changed copies and generated scenes, scores
within 0.01 and boxes within 1 pixel of 1280, in float32 as a GPU computes it, and in float16 with
the queries that float32 selected. On its own float16 selects other queries where two tokens have
nearly the same score (`drift`).

The reference cases need shared/reference next to the checkout; they compare with the official
float64 outputs. "memory" is the encoder's output (standard deviation about 1); "found" is the share
of the 300 official detections per image that have a match: same class, score within 0.02 and box
within 1 % of the image's size. Their weights are random, so scores lie close together and near ties
of the query selection swap: a trained model loses less. Writes precision.json and precision.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.model import drift
from benchmarks.model.drift import Change, emulated, network_of
from benchmarks.report import RESULTS, conditions, table, write_report
from model import build_detector
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
    """Runs a reference case in a precision."""
    case = reference_cases.load_case(name)
    detector = build_detector(reference_cases.config_of(case.meta)).eval()
    detector.load_state_dict(reference_cases.weights_of(case.meta), strict=True)
    images, mask = reference_cases.batch_of(case.arrays, torch.float32)
    output = network_of(detector, precision)(images, mask)
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
    parser = argparse.ArgumentParser(description="Compare precisions.")
    parser.add_argument("--output", type=Path, default=RESULTS / "model")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/lite-detr").expanduser())
    options = parser.parse_args()
    document = conditions()
    torch.set_num_threads(usable_cpus())
    photos = drift.samples()
    images = {**photos, **drift.copies(photos), **drift.scenes(options.cache)}
    rows = []
    with torch.inference_mode():
        changed = drift.changes(("fp32", "tf32", "fp16", "bf16"), images, noise=True)
        for name in reference_cases.case_names():
            rows += [measure(name, precision) for precision in ("fp32", "bf16")]
            with emulated():
                rows.append(measure(name, "fp16"))
    document["changes"] = [asdict(change) for change in changed]
    document["rows"] = [asdict(row) for row in rows]
    sections = ["## Shipped weights, compared with float32\n", _table_of_changes(changed)]
    sections += ["## Reference cases, compared with the official float64 outputs\n"]
    sections += ["The weights are random, so near ties are frequent.\n", _table_of_rows(rows)]
    write_report(options.output / "precision", "What each precision changes", document, sections)


def _table_of_changes(changed: Sequence[Change]) -> str:
    """A row for each precision, alone and with the queries of float32, over all images."""

    def kind(change: Change) -> tuple[str, bool]:
        return change.precision, change.same_queries

    cells = []
    for (precision, same_queries), group in groupby(sorted(changed, key=kind), kind):
        its = list(group)
        cells.append(
            (
                precision,
                "of float32" if same_queries else "its own",
                str(sum(change.detections for change in its)),
                str(sum(change.within for change in its)),
                f"{max(change.score for change in its):.4f}",
                f"{max(change.box_pixels for change in its):.2f}",
                f"{np.mean([change.ranks_changed for change in its]):.1f}",
            )
        )
    columns = (
        *("precision", "queries", "detections", "within limits"),
        *("score", "box, pixels", "queries changed per image"),
    )
    images, side = len({change.image for change in changed}), drift.LONGEST_SIDE
    note = (
        f"{images} images: the sample photos, changed copies of them, and generated scenes. "
        f"Limits: {drift.MAX_SCORE_CHANGE} of a score, {drift.MAX_BOX_CHANGE} pixel if the longest "
        f"side has {side}. Detections with a score of 0.3 and more; largest changes. A box without "
        f"another of its class counts as {side}. fp32, tf32 and fp16 compute as a GPU does, bf16 "
        'as a CPU does. "fp32, noise": float32 on the same images with the last bit of one pixel '
        "in a hundred flipped.\n\n"
    )
    return note + table(columns, cells, 2)


def _table_of_rows(rows: Sequence[Row]) -> str:
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
    return table(columns, cells, 2)


if __name__ == "__main__":
    main()
