"""The report of the accuracy study: tables, a plot, and every run as JSON.

It works with the runs that are done, and says which are missing. Differences between arms are
paired by seed: both runs of a pair have the same start values, images, order and noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.accuracy_arms import ARMS
from benchmarks.paper.accuracy_bootstrap import Matches, choices
from benchmarks.paper.accuracy_cost import gflops
from benchmarks.paper.accuracy_plot import Panel, Point, draw
from benchmarks.paper.accuracy_pool import SIZE
from benchmarks.paper.accuracy_reasons import reasons_table
from benchmarks.paper.accuracy_runs import DETECTIONS_FILE, Run, Study
from benchmarks.paper.accuracy_sets import SETS_FILE, write_atomically
from benchmarks.paper.accuracy_statistics import (
    Interval,
    percentile_interval,
    t_interval,
)
from benchmarks.report import RESULTS, conditions, table, write_report
from model.data.annotations import GroundTruth

LATENCY_FILE = "latency.json"
REPORT = RESULTS / "paper" / "accuracy"
_BASELINE = "a"
_CLAIM = "c"
_KEPT, _FEWER = 0.99, 0.60  # the aim: share of the AP, and of the encoder's GFLOPs saved
_SCORES = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
}


@dataclass(frozen=True)
class Done:
    """One run that is done."""

    run: Run
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """An arm against arm (a) on one set; pairs of the same seed.

    Attributes:
        seeds: of the pairs.
        difference: of the AP, over seeds.
        share: the arm's AP divided by that of (a), over seeds.
        over_images: of the AP, over choices of validation images; the mean over the pairs.
    """

    letter: str
    seeds: Sequence[int]
    difference: Interval
    share: Interval
    over_images: Interval | None


def write(study: Study, arms: str, bootstrap: int, path: Path = REPORT) -> None:
    """Writes the report of the runs that are done as Markdown, JSON and SVG.

    Args:
        study: the study.
        arms: letters of the arms, (a) among them.
        bootstrap: choices of validation images; 0: no such intervals.
        path: of the report, without a suffix.

    Raises:
        ValueError: for a run of other settings.
    """
    runs = study.runs(arms)
    done = [Done(run, found["scores"]) for run in runs if (found := run.result()) is not None]
    costs = {letter: gflops(letter, study.base) for letter in arms}
    latency = _read(study.folder / LATENCY_FILE)
    compared = {name: _compare(study, name, done, arms, bootstrap) for name in study.sets}
    document = {
        **conditions(),
        "done": len(done),
        "planned": len(runs),
        "sets": _read(study.folder / SETS_FILE),
        "base": study.base.to_dict(),
        "options": {name: study.chosen_options(name) for name in study.sets},
        "gflops": costs,
        "latency": latency,
        "comparisons": {name: [asdict(each) for each in found] for name, found in compared.items()},
        "runs": [
            {"set": d.run.set_name, "arm": d.run.arm.letter, "seed": d.run.seed, **d.scores}
            for d in done
        ],
    }
    sections = [_progress(runs, done)]
    for name in study.sets:
        sections += [
            f"## {name}\n",
            _scores_table(name, done, arms, costs, latency),
            _comparison_table(compared[name], costs),
            *(_verdict(name, each, costs, study) for each in compared[name]),
        ]
        if further := reasons_table(study, name):
            sections.append(f"Arms that differ in one thing:\n\n{further}")
    sections.append(f"![AP over encoder GFLOPs]({path.name}.svg)\n")
    write_atomically(
        path.with_suffix(".svg"), draw([_panel(n, done, arms, costs) for n in study.sets])
    )
    write_report(path, "Accuracy of the interleaved encoder", document, sections)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _progress(runs: Sequence[Run], done: Sequence[Done]) -> str:
    """How many runs are done, and which are missing."""
    finished = {each.run.name for each in done}
    missing: dict[str, list[str]] = {}  # seeds by set and arm
    for run in runs:
        if run.name not in finished:
            missing.setdefault(f"{run.set_name} ({run.arm.letter})", []).append(str(run.seed))
    text = f"**{len(done)} of {len(runs)} runs done.**"
    if missing:
        listed = "; ".join(f"{name} {', '.join(seeds)}" for name, seeds in missing.items())
        text += f" Missing seeds: {listed}."
    return text + "\n"


def _values(done: Sequence[Done], name: str, letter: str, score: str) -> dict[int, float]:
    """A score by seed; without those of sets that have no such boxes."""
    found = {
        each.run.seed: each.scores[score]
        for each in done
        if each.run.set_name == name and each.run.arm.letter == letter
    }
    return {seed: value for seed, value in found.items() if value is not None}


def _scores_table(
    name: str,
    done: Sequence[Done],
    arms: str,
    costs: dict[str, dict[str, float]],
    latency: dict[str, Any],
) -> str:
    rows = []
    for letter in arms:
        by_score = [_values(done, name, letter, score) for score in _SCORES.values()]
        cells = [
            t_interval(list(values.values())).format(1, 100) if values else "-"
            for values in by_score
        ]
        time = latency.get("arms", {}).get(letter)
        rows.append(
            [
                f"({letter}) {ARMS[letter].title}",
                str(len(by_score[0])),
                *cells,
                f"{costs[letter]['encoder']:.3f}",
                f"{costs[letter]['total']:.3f}",
                f"{time['cpu_ms']:.1f}" if time else "-",
            ]
        )
    columns = ["arm", "runs", *_SCORES, "encoder GFLOPs", "all GFLOPs", "CPU ms"]
    return table(columns, rows)


def _compare(
    study: Study, name: str, done: Sequence[Done], arms: str, bootstrap: int
) -> list[Comparison]:
    baseline = _values(done, name, _BASELINE, "ap")
    samples = _Samples(study, name, done, bootstrap)
    found = []
    for letter in arms.replace(_BASELINE, ""):
        values = _values(done, name, letter, "ap")
        seeds = sorted(values.keys() & baseline.keys())
        if not seeds:
            continue
        difference = t_interval([values[seed] - baseline[seed] for seed in seeds])
        # Of the means, not the mean of the shares; its interval is that of the differences.
        level = sum(baseline[seed] for seed in seeds) / len(seeds)
        found.append(
            Comparison(
                letter,
                seeds,
                difference,
                _share(difference, level),
                samples.difference(letter, seeds, difference.mean),
            )
        )
    return found


def _share(difference: Interval, level: float) -> Interval:
    low, high = difference.low, difference.high
    return Interval(
        1 + difference.mean / level,
        None if low is None else 1 + low / level,
        None if high is None else 1 + high / level,
    )


class _Samples:
    """Bootstrap values of the runs of one set, each computed once."""

    def __init__(self, study: Study, name: str, done: Sequence[Done], repeats: int) -> None:
        self._runs = {
            (each.run.arm.letter, each.run.seed): each.run
            for each in done
            if each.run.set_name == name
        }
        self._found: dict[tuple[str, int], list[float]] = {}
        self._repeats = repeats
        if repeats and self._runs:
            self._truth = GroundTruth.read(study.image_set(name).annotations("val"))
            self._choices = choices(len(self._truth.images), repeats)

    def difference(self, letter: str, seeds: Sequence[int], mean: float) -> Interval | None:
        """The interval of the mean difference to (a) over these seeds."""
        if self._repeats == 0:
            return None
        ours = [self._of(letter, seed) for seed in seeds]
        theirs = [self._of(_BASELINE, seed) for seed in seeds]
        columns = zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
        values = [(sum(one) - sum(other)) / len(seeds) for one, other in columns]
        return percentile_interval(mean, values)

    def _of(self, letter: str, seed: int) -> list[float]:
        key = (letter, seed)
        if key not in self._found:
            matches = Matches(self._truth, self._runs[key].folder / DETECTIONS_FILE)
            self._found[key] = [matches.average_precision(weights) for weights in self._choices]
        return self._found[key]


def _comparison_table(compared: Sequence[Comparison], costs: dict[str, dict[str, float]]) -> str:
    rows = [
        [
            f"({each.letter}) - (a)",
            str(len(each.seeds)),
            each.difference.ends(2, 100),
            each.over_images.ends(2, 100) if each.over_images else "-",
            f"{each.share.ends(1, 100)} %",
            f"{_fewer(each.letter, costs):.1%}",
        ]
        for each in compared
    ]
    if not rows:
        return "No arm has a pair with (a) yet.\n"
    columns = [
        "difference",
        "pairs",
        "AP (95 % over seeds)",
        "AP (95 % over images)",
        "share of the AP of (a)",
        "fewer encoder GFLOPs",
    ]
    return table(columns, rows)


def _fewer(letter: str, costs: dict[str, dict[str, float]]) -> float:
    return 1 - costs[letter]["encoder"] / costs[_BASELINE]["encoder"]


def _verdict(name: str, found: Comparison, costs: dict[str, dict[str, float]], study: Study) -> str:
    """What the runs so far say of the aim; nothing for the other arms."""
    if found.letter != _CLAIM:
        return ""
    share, fewer = found.share, _fewer(found.letter, costs)
    text = (
        f"({_CLAIM}) keeps {share.mean:.1%} of the AP of (a) on {name} with {fewer:.1%} fewer "
        f"encoder GFLOPs, over {len(found.seeds)} of {len(study.seeds)} seeds. "
    )
    if fewer < _FEWER:
        text += f"The aim of {_FEWER:.0%} fewer GFLOPs is missed. "
    if share.low is None or share.high is None:
        return text + "One pair has no interval.\n"
    if share.low >= _KEPT:
        return text + f"The whole 95 % interval is at or above {_KEPT:.0%}.\n"
    if share.high < _KEPT:
        return text + f"The whole 95 % interval is below {_KEPT:.0%}.\n"
    side = "above" if share.mean >= _KEPT else "below"
    return text + (
        f"The mean is {side} {_KEPT:.0%}, which the 95 % interval ({share.low:.1%} to "
        f"{share.high:.1%}) contains: these runs do not decide it.\n"
    )


def _panel(name: str, done: Sequence[Done], arms: str, costs: dict[str, dict[str, float]]) -> Panel:
    points = []
    for letter in arms:
        values = list(_values(done, name, letter, "ap").values())
        if values:
            points.append(Point(letter, costs[letter]["encoder"], values, t_interval(values)))
    height, width = SIZE
    return Panel(f"{name}, {width} x {height} pixels", points)
