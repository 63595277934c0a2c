"""The runs of the accuracy study: train one arm with one seed on one set, then evaluate it.

A run is a folder. `last.pt` in it resumes a run that was killed, from at most two minutes before;
`result.json` appears at the end. A lock on the folder lets any number of processes share the study.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.paper.accuracy_arms import ARMS, BASE, Arm
from benchmarks.paper.accuracy_pool import Pool
from benchmarks.paper.accuracy_sets import ImageSet, image_set, write_atomically
from benchmarks.paper.accuracy_training import MODEL_FILE, STATE_FILE, Start
from benchmarks.paper.accuracy_training import train as train_arm
from model.config import ModelConfig
from model.data.annotations import GroundTruth
from model.data.data_sets import open_coco
from model.evaluation.evaluate import evaluate
from model.training.options import TrainOptions
from service.engine.host_memory import keep_freed_memory
from service.engine.load import load_predictor

RESULT_FILE = "result.json"
DETECTIONS_FILE = "detections.json"
SETS = ("codes", "bccd")


@dataclass(frozen=True)
class Study:
    """Everything that the results depend on, and the folder that has them.

    Attributes:
        folder: of the image sets (`sets`) and the runs (`runs`).
        base: the architecture of arm (a).
        iterations: optimizer steps by set.
        seeds: one run of each arm for each.
        sets: the image sets that are used.
        length: every run has this many times the steps.
        scenes: generated images of "train" and "val".
        pool_images: augmented training images by set.
        options: of training, other than the ones below.
    """

    folder: Path
    base: ModelConfig = BASE
    iterations: dict[str, int] = field(default_factory=lambda: {"codes": 2000, "bccd": 1000})
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    sets: tuple[str, ...] = SETS
    length: int = 1
    scenes: dict[str, int] = field(default_factory=lambda: {"train": 6000, "val": 1200})
    pool_images: dict[str, int] = field(default_factory=lambda: {"codes": 8000, "bccd": 4000})
    options: dict[str, Any] = field(default_factory=dict)

    def image_set(self, name: str) -> ImageSet:
        """A set by name."""
        return image_set(self.folder, name)

    def runs(self, arms: str) -> list[Run]:
        """The runs of these arms, seed by seed, so that partial results are balanced."""
        return [
            Run(self, name, ARMS[letter], seed)
            for seed in self.seeds
            for name in self.sets
            for letter in arms
        ]

    def chosen_options(self, set_name: str) -> dict[str, Any]:
        """The options of training that are not left at their defaults; the same for every arm."""
        return {
            "max_iterations": self.iterations[set_name] * self.length,
            "batch_size": 8,
            "learning_rate": 5e-4,
            "warmup_iterations": 100,
            "ema_decay": 0.995,
            "ema_warmup_iterations": 100,
            "denoising_queries": 40,
            **self.options,
        }

    def training(self, run: Run) -> TrainOptions:
        """The options of a run."""
        chosen = self.chosen_options(run.set_name)
        return TrainOptions(output=run.folder, seed=run.seed, device="cpu", **chosen)


@dataclass(frozen=True)
class Run:
    """One arm with one seed on one set."""

    study: Study
    set_name: str
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """The run in one word: `codes-a-1`, or `codes-a-1-x3` with three times the steps."""
        name = f"{self.set_name}-{self.arm.letter}-{self.seed}"
        return name if self.study.length == 1 else f"{name}-x{self.study.length}"

    @property
    def folder(self) -> Path:
        """Where the run keeps its files."""
        return self.study.folder / "runs" / self.name

    def result(self) -> dict[str, Any] | None:
        """The scores and the settings that gave them; None if the run is not done.

        Raises:
            ValueError: if the run was made with other settings.
        """
        path = self.folder / RESULT_FILE
        if not path.is_file():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["settings"] != self.settings():
            raise ValueError(
                f"{path} is of other settings of the study: choose another folder, or delete it"
            )
        return result

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as plain JSON values."""
        config, defaults = self.arm.config(self.study.base, 1).to_dict(), ModelConfig().to_dict()
        values = {
            "config": {name: value for name, value in config.items() if value != defaults[name]},
            "options": self.study.chosen_options(self.set_name),
            "pool_images": self.study.pool_images[self.set_name],
            "scenes": self.study.scenes if self.set_name == "codes" else None,
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def run_all(study: Study, arms: str, console: Console) -> None:
    """Does the runs that no other process has done or is doing.

    Args:
        study: the study.
        arms: letters of the arms.
        console: for progress.

    Raises:
        TrainingStopped: if a signal stopped it before the last of them.
    """
    torch.set_num_threads(1)
    keep_freed_memory()  # a step needs the memory of the last one again
    for run in study.runs(arms):
        with _locked(run.folder) as ours:
            if not ours or run.result() is not None:
                continue
            console.print(f"{run.name}: {run.arm.title}")
            train(run, console)
            score(run, console)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Locks a folder until the end of the context or the process; False if another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def train(run: Run, console: Console) -> None:
    """Trains a run, or the rest of it.

    Raises:
        TrainingStopped: if a signal stopped it before the end.
    """
    study, images = run.study, run.study.image_set(run.set_name)
    run.folder.mkdir(parents=True, exist_ok=True)
    categories = dict(GroundTruth.read(images.annotations("train")).categories)
    pool = Pool(images, study.pool_images[run.set_name])
    train_arm(Start(run.arm, study.base, categories, pool), study.training(run), console.print)


def score(run: Run, console: Console) -> None:
    """Evaluates a trained run by the path that serves, and writes its result."""
    images = run.study.image_set(run.set_name)
    predictor, info = load_predictor(run.folder / MODEL_FILE, "cpu", threads=1)
    scores = evaluate(
        predictor,
        info.labels,
        open_coco(images.annotations("val"), images.images("val")),
        results_path=run.folder / DETECTIONS_FILE,
        overwrite=True,
    )
    result = {
        "set": run.set_name,
        "arm": run.arm.letter,
        "seed": run.seed,
        "settings": run.settings(),
        "scores": asdict(scores),
    }
    write_atomically(run.folder / RESULT_FILE, json.dumps(result, indent=2))
    (run.folder / STATE_FILE).unlink()
    console.print(f"{run.name}: AP {scores.ap:.4f}")
