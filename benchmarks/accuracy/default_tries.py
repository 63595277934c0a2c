"""Short runs with single changes of the recipe, and the table of what they changed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.default_plan import PlanError, sole_user
from benchmarks.accuracy.default_recipe import EDITION, TRIES, try_options
from benchmarks.accuracy.synthetic_set import SEED, synthetic_set
from benchmarks.accuracy.threshold_sweep import sweep
from model.data.annotations import GroundTruth
from model.evaluation.evaluate import evaluate_coco, run_detector_on
from model.evaluation.photo_rules import judge_photos
from model.training.loop import train
from model.training.run_folder import STATE_FILE
from model.training.state import read_position
from service.engine.load import load_predictor

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class TryResult:
    """What one short run gave on the validation set, without dropping duplicates.

    Attributes:
        name: of the change.
        iterations: optimizer steps.
        scenes: of the validation set.
        minutes: of training.
        ap: COCO's AP, as `ap50` and `ap_small`.
        threshold: with the best F1.
        recall: at it.
        false_alarms: detections on scenes without codes at it.
        surplus: detections at it that found no further code, duplicates among them.
    """

    name: str
    iterations: int
    scenes: int
    minutes: float
    ap: float
    ap50: float
    ap_small: float
    threshold: float
    recall: float
    false_alarms: int
    surplus: int


def run_try(name: str, folder: Path, iterations: int, scenes: int) -> TryResult:
    """Trains with one change and scores it, on one core; continues a try that was stopped.

    Args:
        name: a key of `TRIES`.
        folder: of the training; the try has `tries/NAME` in it.
        iterations: optimizer steps.
        scenes: of the validation set.

    Raises:
        InterruptedError: if a signal stopped it.
        PlanError: if another process trains it.
    """
    run = folder / "tries" / f"{name}-{iterations}"
    with sole_user(run):
        return _run_try(name, folder, run, iterations, scenes)


def _run_try(name: str, folder: Path, run: Path, iterations: int, scenes: int) -> TryResult:
    with sole_user(folder / "validation", wait=True):
        annotations, images = synthetic_set(folder / "validation", scenes, EDITION)
    path = train(try_options(name, run, iterations))
    position = read_position(run / STATE_FILE)
    if position.iteration < iterations:
        raise InterruptedError(f"{name} was stopped; the same command continues")
    minutes = position.elapsed_seconds / 60
    scores = _scores(path, GroundTruth.read(annotations), images)
    result = TryResult(name, iterations, scenes, round(minutes, 1), **scores)
    part = run / f"{RESULT_FILE}.part"
    part.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    os.replace(part, run / RESULT_FILE)
    return result


def _scores(path: Path, truth: GroundTruth, images: Path) -> dict[str, Any]:
    """Returns the scores of weights by the names of `TryResult`."""
    predictor, info = load_predictor(path, "cpu", 1)
    config = replace(info.config, duplicate_iou=1.0)
    found = run_detector_on(predictor, truth, images, config, info.labels)
    scores, points = evaluate_coco(found, truth), sweep(found, truth)
    best = max(points, key=lambda point: point.f1)
    judged = judge_photos(found, truth, best.threshold)
    return {
        "ap": round(scores.ap or 0.0, 4),
        "ap50": round(scores.ap50 or 0.0, 4),
        "ap_small": round(scores.ap_small or 0.0, 4),
        "threshold": best.threshold,
        "recall": round(best.recall, 4),
        "false_alarms": judged.false_alarms,
        "surplus": judged.surplus,
    }


def read_results(folder: Path) -> list[TryResult]:
    """Returns the finished tries of a folder, by iterations, then in the order of `TRIES`.

    Raises:
        PlanError: for a file that is not a result.
    """
    found: list[TryResult] = []
    for path in sorted((folder / "tries").glob(f"*/{RESULT_FILE}")):
        try:
            found.append(TryResult(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise PlanError(f"{path} is not a result: {error}") from error
    order = {name: number for number, name in enumerate(TRIES)}
    return sorted(found, key=lambda each: (each.iterations, order.get(each.name, len(order))))


def format_results(results: list[TryResult]) -> str:
    """Formats a Markdown table; differences are those from the recipe of as many iterations."""
    if not results:
        return "no try is finished yet"
    scenes = sorted({each.scenes for each in results})
    base = {(e.iterations, e.scenes): e for e in results if e.name == "recipe"}
    rows = [
        f"Validation set: edition {EDITION}, seed {SEED}, {', '.join(map(str, scenes))} scenes; "
        "`duplicate_iou` 1. In brackets: the difference from the recipe.",
        "",
        "| change | iterations | minutes | AP | AP50 | AP small | recall | false alarms "
        "| surplus |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in results:
        other = base.get((each.iterations, each.scenes))
        cells = [
            _cell(getattr(each, name), getattr(other, name) if other not in (None, each) else None)
            for name in ("ap", "ap50", "ap_small", "recall", "false_alarms", "surplus")
        ]
        title = TRIES[each.name].title if each.name in TRIES else each.name
        rows.append(
            f"| `{each.name}`: {title} | {each.iterations} | {each.minutes:g} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(rows)


def _cell(value: float, base: float | None) -> str:
    shown = f"{value:.3f}" if isinstance(value, float) else str(value)
    if base is None:
        return shown
    gap = value - base
    return f"{shown} ({gap:+.3f})" if isinstance(value, float) else f"{shown} ({gap:+d})"
