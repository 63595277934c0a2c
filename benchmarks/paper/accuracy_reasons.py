"""Further arms of the accuracy study: which part of an encoder makes the difference.

The arms of the claim differ in several things at once. Each pair here differs in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.paper.accuracy_runs import Run, Study
from benchmarks.paper.accuracy_statistics import t_interval
from benchmarks.report import table

_LENGTHS = (1, 3)  # times the steps of the study's runs


@dataclass(frozen=True)
class Pair:
    """Two arms that differ in one thing.

    Attributes:
        letter: of the arm that has it.
        without: of the arm that does not.
        change: what differs.
    """

    letter: str
    without: str
    change: str


PAIRS = (
    Pair("c", "b", "KDA in encoder and decoder, interleaved encoder"),
    Pair("i", "b", "KDA in the encoder, interleaved encoder"),
    Pair("c", "i", "KDA in the decoder, interleaved encoder with KDA"),
    Pair("e", "a", "KDA in encoder and decoder, every token in every layer"),
    Pair("j", "c", "keys with a projection of their own in the encoder, KDA"),
    Pair("f", "b", "8 points instead of 4, interleaved encoder"),
)


def reasons_table(study: Study, set_name: str) -> str:
    """The differences of the pairs that have runs on a set; empty if no further arm has runs.

    Raises:
        ValueError: for a run of other settings.
    """
    rows, further = [], False
    for length in _LENGTHS:
        runs = replace(study, sets=(set_name,), length=length)
        for pair in PAIRS:
            ours, theirs = _scores(runs, pair.letter), _scores(runs, pair.without)
            seeds = sorted(ours.keys() & theirs.keys())
            if not seeds:
                continue
            further |= length > 1 or pair != PAIRS[0]
            difference = t_interval([ours[seed] - theirs[seed] for seed in seeds])
            rows.append(
                [
                    f"({pair.letter}) - ({pair.without})",
                    pair.change,
                    f"x{length}",
                    str(len(seeds)),
                    *(_mean(scores, seeds) for scores in (theirs, ours)),
                    difference.ends(2, 100),
                ]
            )
    if not further:
        return ""
    columns = ["difference", "what differs", "steps", "pairs", "AP without", "AP with"]
    return table([*columns, "AP (95 % over seeds)"], rows)


def _scores(study: Study, letter: str) -> dict[int, float]:
    """AP by seed of the runs that are done."""
    found = {run.seed: _ap(run) for run in study.runs(letter)}
    return {seed: value for seed, value in found.items() if value is not None}


def _ap(run: Run) -> float | None:
    result = run.result()
    return None if result is None else result["scores"]["ap"]


def _mean(scores: dict[int, float], seeds: Sequence[int]) -> str:
    return f"{100 * sum(scores[seed] for seed in seeds) / len(seeds):.1f}"
