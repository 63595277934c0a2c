"""Accuracy of the interleaved encoder against one that updates every token in every layer.

    python -m benchmarks.paper.accuracy prepare --photos ../shared/photos/bccd
    python -m benchmarks.paper.accuracy run --processes 2
    python -m benchmarks.paper.accuracy latency
    python -m benchmarks.paper.accuracy report

`run` trains and evaluates every arm with every seed on both sets, for hours, at the lowest
priority. It can be killed at any time: the same command continues. `report` works with the runs
that are done and names the missing ones. docs/accuracy-study.md describes the study.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console

from benchmarks.paper.accuracy_arms import ARMS, BASE
from benchmarks.paper.accuracy_cost import latency
from benchmarks.paper.accuracy_pool import fill
from benchmarks.paper.accuracy_report import LATENCY_FILE, write
from benchmarks.paper.accuracy_runs import SETS, Study, run_all
from benchmarks.paper.accuracy_sets import SETS_FILE, prepare, write_atomically
from benchmarks.report import ROOT, conditions
from model.training.stopping import TrainingStopped

_FOLDER = ROOT / "runs" / "paper-accuracy"
_LOWEST_PRIORITY = 19
_REQUIRED = "".join(letter for letter, arm in ARMS.items() if not arm.optional)


def main() -> None:
    """Runs one of the commands."""
    options = _parse()
    try:
        _do(options)
    except TrainingStopped as stopped:
        print(f"{stopped}; the same command continues", file=sys.stderr)
        sys.exit(stopped.exit_status)
    except (ArithmeticError, OSError, ValueError) as error:
        sys.exit(str(error))


def _do(options: argparse.Namespace) -> None:
    study = Study(
        options.folder,
        seeds=tuple(options.seeds),
        sets=tuple(options.sets),
        length=options.length,
    )
    if options.command == "prepare":
        prepare(study.folder, study.scenes, options.photos, options.processes)
        for name, count in study.pool_images.items():
            fill(study.image_set(name), count, options.processes)
    elif options.command == "latency":
        found = {**conditions(), "arms": latency("".join(ARMS), BASE, options.rounds)}
        study.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(study.folder / LATENCY_FILE, json.dumps(found, indent=2))
    elif options.command == "report":
        write(study, options.arms, options.bootstrap)
    else:
        _run(study, options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("prepare", "run", "latency", "report"))
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="of the sets and the runs")
    parser.add_argument("--photos", type=Path, help="prepare: folder of the BCCD photographs")
    parser.add_argument(
        "--arms",
        default=_REQUIRED,
        type=_arms,
        help="; ".join(f"{letter}: {arm.title}" for letter, arm in ARMS.items()),
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="run: of these sets")
    parser.add_argument(
        "--seeds", nargs="+", type=_positive, default=Study.seeds, help="run: with these seeds"
    )
    parser.add_argument(
        "--length", type=_positive, default=1, help="run: this many times the steps"
    )
    parser.add_argument("--processes", type=_positive, default=1, help="of one thread each")
    parser.add_argument("--rounds", type=_positive, default=30, help="latency: images of each arm")
    parser.add_argument(
        "--bootstrap",
        type=_count,
        default=200,
        help="report: choices of validation images; 0: no intervals over images",
    )
    options = parser.parse_args()
    if options.command == "prepare" and options.photos is None:
        parser.error("prepare requires --photos")
    if options.command == "run" and not (options.folder / SETS_FILE).is_file():
        parser.error(f"{options.folder / SETS_FILE} is missing: run the command prepare first")
    return options


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _positive(text: str) -> int:
    if (number := _count(text)) == 0:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _arms(letters: str) -> str:
    unknown = [letter for letter in letters if letter not in ARMS]
    if unknown or not letters or len(set(letters)) < len(letters):
        raise argparse.ArgumentTypeError(f"different letters of {''.join(ARMS)}, not {letters!r}")
    return letters


def _run(study: Study, options: argparse.Namespace) -> None:
    """Does the runs, in this process or in several."""
    os.nice(_LOWEST_PRIORITY)
    if options.processes <= 1:
        run_all(study, options.arms, Console(highlight=False, soft_wrap=True))
        return
    command = [sys.executable, "-m", "benchmarks.paper.accuracy", *sys.argv[1:], "--processes", "1"]
    workers = [subprocess.Popen(command) for _ in range(options.processes)]

    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for worker in workers:
            worker.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    codes = [worker.wait() for worker in workers]
    if received and any(codes):
        raise TrainingStopped(received[0])
    if any(codes):
        sys.exit("not all runs are done; the same command continues")


if __name__ == "__main__":
    main()
