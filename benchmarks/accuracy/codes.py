"""The score card of the code detector: our model, and `arbez` for comparison, by the same rules.

    python -m benchmarks.accuracy.codes --photos DIR --arbez
    python -m benchmarks.accuracy.codes --photos DIR --jpeg-decoding scaled
    python -m benchmarks.accuracy.codes --sweep

DIR contains `photos.json` (COCO format) and `photos/`. Prints Markdown; `--json FILE` writes all
figures. `--sweep` chooses the working threshold on the synthetic set only: the photos are used for
measuring, not for tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.arbez_peer import SCORE_THRESHOLD as ARBEZ_THRESHOLD
from benchmarks.accuracy.arbez_peer import run_arbez_on
from benchmarks.accuracy.synthetic_set import EDITION, NUM_SCENES, SEED, synthetic_set
from benchmarks.accuracy.threshold_sweep import choose_threshold, format_sweep, sweep
from model.data.annotations import GroundTruth
from model.evaluation.evaluate import (
    ImageDetections,
    Scores,
    evaluate_coco,
    format_scores,
    run_detector_on,
)
from model.evaluation.photo_rules import PhotoScores, format_photo_scores, judge_photos
from model.images.decode import JpegDecoding
from model.predictor import Predictor
from model.training.codes import EDITIONS
from model.weights.info import ModelInfo, default_cache_dir, resolve_model
from service.engine.load import load_predictor


@dataclass(frozen=True)
class SetScores:
    """The scores of the detectors on one set."""

    name: str
    columns: dict[str, PhotoScores]  # by detector
    coco: Scores | None  # of our model; None if the set's boxes are too inexact for COCO scores


def main() -> None:
    """Runs the detectors and prints the score card, or the threshold sweep."""
    options = _parse()
    _use_cpus(options.threads)
    path = resolve_model(options.model)
    predictor, info = load_predictor(path, options.device, options.threads, options.precision)
    _log(f"{path}: {info.name} {info.version}, {path.stat().st_size / 1e6:.1f} MB")

    annotations, folder = synthetic_set(options.cache_dir, options.scenes, options.edition)
    scenes = GroundTruth.read(annotations)
    mode: JpegDecoding = options.jpeg_decoding
    ours = _run("synthetic", predictor, info, scenes, folder, mode)
    if options.sweep:
        points = sweep(ours, scenes)
        print(f"{_set_title(options)}\n")
        print(format_sweep(points))
        chosen = choose_threshold(points, options.max_alarms)
        print(f"\nworking threshold: {chosen:.2f}")
        return

    threshold = info.score_threshold if options.threshold is None else options.threshold
    title = f"{info.name} {info.version} at {threshold:g}"
    title += ", scaled JPEGs" if mode == "scaled" else ""
    judged = []
    if options.photos is not None:
        truth = GroundTruth.read(options.photos / "photos.json", limit=options.limit)
        images = options.photos / "photos"
        found = _run("photos", predictor, info, truth, images, mode)
        columns = {title: judge_photos(found, truth, threshold)}
        if options.arbez:
            columns |= _peer_column("photos", truth, images)
        judged.append(SetScores("Real photos", columns, None))
    columns = {title: judge_photos(ours, scenes, threshold)}
    if options.arbez:
        columns |= _peer_column("synthetic", scenes, folder)
    judged.append(SetScores(_set_title(options), columns, evaluate_coco(ours, scenes)))

    print("\n\n".join(_section(part) for part in judged))
    if options.json is not None:
        record = _record(info, threshold, options, judged)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score the code detector, and arbez.")
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--photos", type=Path, help="folder with photos.json and photos/")
    parser.add_argument("--threshold", type=float, help="working threshold (default: the model's)")
    parser.add_argument("--arbez", action="store_true", help="run arbez too (requires the package)")
    parser.add_argument("--sweep", action="store_true", help="choose a threshold (synthetic set)")
    parser.add_argument(
        "--max-alarms",
        type=float,
        default=1.0,
        help="with --sweep: largest share of code-free scenes with a detection (default: any)",
    )
    parser.add_argument("--limit", type=int, help="use only the first photos")
    parser.add_argument("--precision", default="auto", help="of the network")
    parser.add_argument(
        "--jpeg-decoding", choices=("exact", "scaled"), default="exact", help="for our model"
    )
    parser.add_argument("--scenes", type=int, default=NUM_SCENES, help="number of synthetic scenes")
    parser.add_argument(
        "--edition", type=int, default=EDITION, choices=sorted(EDITIONS), help="of their generator"
    )
    parser.add_argument("--device", default="cpu", help="torch device of our model")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores for either detector")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir() / "evaluation")
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser.parse_args()


def _set_title(options: argparse.Namespace) -> str:
    """Names the synthetic set by all that it depends on."""
    return (
        f"Synthetic validation set (edition {options.edition}, {options.scenes} scenes, "
        f"seed {SEED})"
    )


def _use_cpus(count: int) -> None:
    """Restricts the process to some cores: arbez has no setting for onnxruntime's threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    torch.set_num_threads(count)


def _run(  # noqa: PLR0913, PLR0917 - of one set
    what: str,
    predictor: Predictor,
    info: ModelInfo,
    truth: GroundTruth,
    folder: Path,
    jpeg_decoding: JpegDecoding,
) -> list[ImageDetections]:
    return run_detector_on(
        predictor,
        truth,
        folder,
        info.config,
        info.labels,
        progress=_progress(what),
        jpeg_decoding=jpeg_decoding,
    )


def _peer_column(what: str, truth: GroundTruth, folder: Path) -> dict[str, PhotoScores]:
    found = run_arbez_on(truth, folder, _progress(f"arbez, {what}"))
    scores = judge_photos(found, truth, ARBEZ_THRESHOLD, ignore_class=True)
    return {f"arbez 0.2.1 at {ARBEZ_THRESHOLD:g}, class ignored": scores}


def _section(scores: SetScores) -> str:
    parts = [f"### {scores.name}", format_photo_scores(scores.columns)]
    if scores.coco is not None:
        parts += [f"COCO scores of {next(iter(scores.columns))}:", format_scores(scores.coco)]
    return "\n\n".join(parts)


def _record(
    info: ModelInfo, threshold: float, options: argparse.Namespace, judged: list[SetScores]
) -> dict[str, Any]:
    return {
        "model": info.name,
        "version": info.version,
        "threshold": threshold,
        "jpeg_decoding": options.jpeg_decoding,
        "synthetic_edition": options.edition,
        "synthetic_seed": SEED,
        "synthetic_scenes": options.scenes,
        "sets": [asdict(part) for part in judged],
    }


def _progress(what: str) -> Callable[[int, int], None]:
    """A counter on stderr, if it is a terminal."""

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr)

    return report


def _log(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
