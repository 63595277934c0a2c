"""The training of one run of the accuracy study, on the maps of the frozen backbone.

Losses, matching, optimizer, schedule, averaging and state files are those of `lite-detr train`.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.paper.accuracy_arms import Arm, FrozenBackbone, start
from benchmarks.paper.accuracy_pool import Pool
from model.config import ModelConfig
from model.training.ema import ExponentialAverage
from model.training.objective import Objective
from model.training.optimizer import build_optimizer, set_learning_rate
from model.training.options import TrainOptions
from model.training.schedule import learning_rate_factor
from model.training.state import Position, Run, SavedRun, load_state, save_state
from model.training.stopping import StopRequest, TrainingStopped
from model.weights.checkpoint import save_checkpoint

STATE_FILE = "last.pt"
MODEL_FILE = "model.safetensors"
_LOG_FILE = "log.jsonl"
_SAVE_SECONDS = 120.0
_LOG_STEPS = 50
_SCORE_THRESHOLD = 0.4  # COCO's scores do not depend on it


@dataclass(frozen=True)
class Start:
    """What a run trains, besides its options.

    Attributes:
        arm: the detector.
        base: the architecture that the arm changes.
        categories: names of the classes by COCO category id.
        pool: the images.
    """

    arm: Arm
    base: ModelConfig
    categories: dict[int, str]
    pool: Pool

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, by output."""
        return tuple(self.categories.values())


@dataclass
class Log:
    """Losses of the last steps, as lines of a file and of a console.

    Attributes:
        folder: of the run.
        report: called with a line of text.
    """

    folder: Path
    report: Callable[[str], None]
    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, iteration: int, losses: dict[str, float]) -> None:
        """Adds the losses of a step; writes the means of every 50."""
        self.rows.append(losses)
        if iteration % _LOG_STEPS:
            return
        names = ("total", "classification", "box_l1", "giou")
        means = {name: sum(row[name] for row in self.rows) / len(self.rows) for name in names}
        self.rows = []
        with (self.folder / _LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **means}) + "\n")
        self.report(f"{self.folder.name} {iteration}: loss {means['total']:.2f}")


def train(begin: Start, options: TrainOptions, report: Callable[[str], None]) -> None:
    """Trains a run, or the rest of it, and writes its weights to `MODEL_FILE`.

    Args:
        begin: what is trained.
        options: the run's folder, seed, length, batch size, optimizer and losses count.
        report: called with lines of text.

    Raises:
        NonFiniteError: if predictions or losses are not finite.
        TrainingStateError: if the state of the run cannot be used.
        TrainingStopped: after SIGINT or SIGTERM, with everything saved.
    """
    detector = start(begin.arm, begin.base, begin.labels, options.seed).train()
    average = ExponentialAverage(detector, options.ema_decay, options.ema_warmup_iterations)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    run = Run(detector, build_optimizer(detector, options), average, scaler)
    objective = Objective(detector, options, None)
    place, state_file = Position(), options.output / STATE_FILE
    if state_file.exists():
        place = load_state(state_file, run, begin.labels).position
        report(f"{options.output.name}: continues at step {place.iteration}")
    log, saved = Log(options.output, report), time.monotonic()
    with StopRequest() as stop:
        while place.iteration < options.max_iterations and not stop.requested:
            losses = _step(begin.pool, run, objective, options, place.iteration)
            place.iteration += 1
            log.add(place.iteration, losses)
            if time.monotonic() - saved >= _SAVE_SECONDS:
                _save(begin, run, options, place)
                saved = time.monotonic()
    _save(begin, run, options, place)
    if stop.number is not None and place.iteration < options.max_iterations:
        raise TrainingStopped(stop.number)
    save_checkpoint(
        options.output / MODEL_FILE,
        average.full_state(detector),
        begin.arm.config(begin.base, len(begin.labels)),
        begin.labels,
        score_threshold=_SCORE_THRESHOLD,
        name=begin.arm.config(begin.base, len(begin.labels)).name,
        category_ids=tuple(begin.categories),
    )


def _save(begin: Start, run: Run, options: TrainOptions, place: Position) -> None:
    saved = SavedRun(place, begin.labels, None)
    save_state(options.output / STATE_FILE, run, saved, options.to_dict())


def _step(
    pool: Pool, run: Run, objective: Objective, options: TrainOptions, iteration: int
) -> dict[str, float]:
    """One optimizer step; returns the losses before it."""
    numbers = drawn(pool.count, options.batch_size, options.seed, iteration)
    batch, maps = pool.batch(numbers)
    backbone = run.detector.get_submodule("backbone.0")
    assert isinstance(backbone, FrozenBackbone)
    backbone.given = maps
    losses = objective.losses(batch)
    progress = iteration / options.max_iterations
    set_learning_rate(run.optimizer, learning_rate_factor(options, iteration, progress))
    torch.autograd.backward(losses.total)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    limit = options.clip_norm if options.clip_norm > 0 else math.inf
    torch.nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=True)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.average.update(run.detector)
    return losses.values()


def drawn(count: int, batch_size: int, seed: int, iteration: int) -> list[int]:
    """The images of a step: every epoch is a permutation that depends on seed and epoch only."""
    places = range(iteration * batch_size, (iteration + 1) * batch_size)
    return [_order(count, seed, place // count)[place % count] for place in places]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return order
