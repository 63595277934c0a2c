"""The training loop: batches in, weights out; it can stop at any iteration and resume.

`train` is the entry point. A `Trainer` is one run; a resumed run needs its position and its tensors
(see state.py).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from model.data.errors import OutputError
from model.data.output_files import FileSet
from model.network.detector import LiteDETR
from model.ops import select_implementation
from model.training.batches import Batch, BatchPlanner, make_loader
from model.training.ema import ExponentialAverage
from model.training.matcher import NonFiniteError
from model.training.objective import Objective, choose_device, choose_precision
from model.training.optimizer import build_optimizer, set_learning_rate
from model.training.options import TrainOptions
from model.training.report import CURVE_FILE, LOG_FILE, Reporter
from model.training.samples import SampleImages
from model.training.schedule import learning_rate_factor, run_progress
from model.training.sources import ImageSource
from model.training.start import build_start, open_source
from model.training.state import Position, Run, SavedRun, load_state, save_state
from model.training.stopping import StopRequest
from model.weights.checkpoint import save_checkpoint

STATE_FILE = "last.pt"
MODEL_FILE = "model.safetensors"
_RUN_FILES = (MODEL_FILE, STATE_FILE, LOG_FILE, CURVE_FILE)
_MINUTE = 60.0


class TrainingFailed(RuntimeError):
    """Training cannot continue; the message names the losses that are not finite."""


def train(options: TrainOptions) -> Path:
    """Trains a detector and exports its averaged weights.

    SIGINT or SIGTERM stop it after the current iteration, with everything saved.

    Returns:
        The exported safetensors file; `last.pt` next to it resumes the run.

    Raises:
        DataError: if the data cannot be used.
        OutputError: if the output folder has files of another run.
        TrainingFailed: after too many non-finite losses in a row.
        TrainingStateError: if a run cannot be resumed.
        ValueError: for options or start weights that do not fit.
    """
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    _check_output_folder(options)
    data = open_source(options, report=lambda text: print(text, file=sys.stderr))
    options.output.mkdir(parents=True, exist_ok=True)
    with Reporter(options.output) as reporter:
        detector = build_start(options, data.labels, reporter.line)
        trainer = Trainer(
            detector, data.source, data.labels, options, reporter, category_ids=data.category_ids
        )
        return trainer.run()


def _check_output_folder(options: TrainOptions) -> None:
    """Refuses to replace the files of an earlier run, and inputs of this one.

    Raises:
        OutputError: if there are files of an earlier run, and the options neither resume it nor
            overwrite them; if a file to write is an input.
    """
    folder = options.output
    inputs = FileSet(filter(None, (options.annotations, options.init_from)))
    replaced = [folder / name for name in _RUN_FILES if folder / name in inputs]
    if replaced:
        raise OutputError(
            f"{replaced[0]} is an input of this command and is not replaced by its output: choose "
            "another --output"
        )
    if options.overwrite or (options.resume and (folder / STATE_FILE).exists()):
        return
    present = [name for name in _RUN_FILES if (folder / name).exists()]
    if present:
        raise OutputError(
            f"{folder} has {present[0]} of an earlier run: --resume continues a run that left "
            f"{STATE_FILE}, --overwrite replaces it, another --output keeps both"
        )


class Trainer:
    """One run.

    Args:
        detector: trained in place.
        source: the training images.
        labels: names of the classes.
        options: of the run.
        reporter: shows and logs the progress.
        category_ids: COCO category id of each class; None: unknown.
        clock: returns seconds; only differences are used.
    """

    def __init__(  # noqa: PLR0913 - the parts of a run
        self,
        detector: LiteDETR,
        source: ImageSource,
        labels: Sequence[str],
        options: TrainOptions,
        reporter: Reporter,
        *,
        category_ids: Sequence[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Builds the optimizer, the average and the losses."""
        self.options = options
        self.position = Position()
        self._source = source
        self._labels = tuple(labels)
        self._category_ids = category_ids
        self._name = options.name or detector.config.name
        self._reporter = reporter
        self._clock = clock
        select_implementation(options.kernel)
        self._device = choose_device(options.device)
        precision = choose_precision(options.amp, self._device)
        detector = detector.to(self._device).train()
        self.detector: LiteDETR = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.run_state = Run(
            detector=self.detector,
            optimizer=build_optimizer(self.detector, options),
            average=ExponentialAverage(
                self.detector, options.ema_decay, options.ema_warmup_iterations
            ),
            scaler=torch.amp.GradScaler(self._device.type, enabled=precision is torch.float16),
        )
        self._objective = Objective(self.detector, options, precision)
        self._accumulated = 0
        self._bad_in_a_row = 0
        self._row_losses: list[dict[str, float]] = []  # since the last row
        self._learning_rate = 0.0
        self._elapsed_before = 0.0
        self._started = self._row_time = self._saved_time = clock()
        self._row_iteration = 0
        self._sample_time = -math.inf

    def run(self) -> Path:
        """Trains until the end of the run or a stop signal; see `train`."""
        state_file = self.options.output / STATE_FILE
        resumed = self.options.resume and state_file.exists()
        if resumed:
            saved = load_state(state_file, self.run_state, self._labels)
            self.position = saved.position
            self._name = self.options.name or saved.name or self._name
            self._reporter.line(f"resumed at iteration {self.position.iteration}")
        self._reporter.forget_after(self.position.iteration)
        self._elapsed_before = self.position.elapsed_seconds
        self._started = self._row_time = self._saved_time = self._clock()
        self._row_iteration = self.position.iteration
        self._samples = SampleImages(self._source, self.options, self._labels)
        with StopRequest() as stop:
            while not (stop.requested or self._finished()):
                self._run_epoch(stop, planned=resumed)
                resumed = False
        self._reporter.line(
            f"stopped at iteration {self.position.iteration} by a signal; --resume continues"
            if stop.requested
            else f"finished at iteration {self.position.iteration}"
        )
        return self._save()

    def _finished(self) -> bool:
        return self._progress() >= 1.0

    def _progress(self, ahead: int = 0) -> float:
        """Returns the progress of the run, `ahead` iterations from now."""
        return run_progress(self.options, self.position.iteration + ahead, self._elapsed())

    def _elapsed(self) -> float:
        return self._elapsed_before + self._clock() - self._started

    def _run_epoch(self, stop: StopRequest, *, planned: bool) -> None:
        """Trains on the rest of the current epoch; `planned`: as the saved run planned it."""
        place = self.position
        self._source.refresh(place.epoch, place.source_length if planned else None)
        place.source_length = len(self._source)
        first, begun = place.iteration, place.batches
        final_from = 1 - self.options.final_share

        def is_final(batch: int) -> bool:
            done = first + (batch - begun) // self.options.accumulate
            return run_progress(self.options, done, self._elapsed()) >= final_from > 0

        planner = BatchPlanner(self.options, len(self._source), place.epoch, begun, is_final)
        for batch in make_loader(self._source, planner, self.options):
            place.batches += 1
            self._train_on(batch)
            if self._accumulated:
                continue  # partial sums of gradients are not saved
            if stop.requested or self._finished():
                return
            self._report_and_save()
        place.epoch, place.batches = place.epoch + 1, 0

    def _train_on(self, batch: Batch) -> None:
        """Trains on one batch; steps the optimizer when enough batches are accumulated."""
        try:
            losses = self._objective.losses(batch.to(self._device))
            values = losses.values()
            if not math.isfinite(values["total"]):
                bad = [name for name, value in values.items() if not math.isfinite(value)]
                raise NonFiniteError(f"not finite: {', '.join(bad)}")
            scaler = self.run_state.scaler
            torch.autograd.backward(scaler.scale(losses.total / self.options.accumulate))
            self._accumulated += 1
            if self._accumulated == self.options.accumulate:
                self._step()
            self._row_losses.append(values)
            self._bad_in_a_row = 0
        except NonFiniteError as error:
            self._skip(error)

    def _step(self) -> None:
        """Sets the learning rate, clips the gradients, steps the optimizer, updates the average."""
        run, options, place = self.run_state, self.options, self.position
        factor = learning_rate_factor(options, place.iteration, self._progress())
        self._learning_rate = set_learning_rate(run.optimizer, factor)
        run.scaler.unscale_(run.optimizer)
        limit = options.clip_norm if options.clip_norm > 0 else math.inf
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm) and not run.scaler.is_enabled():
            raise NonFiniteError("not finite: the gradient")
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.optimizer.zero_grad(set_to_none=True)
        run.average.update(self.detector)
        self._accumulated = 0
        place.iteration += 1

    def _skip(self, error: NonFiniteError) -> None:
        """Skips a step; too many in a row end the run."""
        self.run_state.optimizer.zero_grad(set_to_none=True)
        self._accumulated = 0
        self._bad_in_a_row += 1
        self.position.skipped += 1
        self._reporter.line(f"skipped a step at iteration {self.position.iteration}: {error}")
        if self._bad_in_a_row >= self.options.max_skipped:
            raise TrainingFailed(
                f"{self._bad_in_a_row} losses in a row were not finite at iteration"
                f" {self.position.iteration}; the last: {error}"
            )

    def _report_and_save(self) -> None:
        """Writes log rows, checkpoints and sample images, each when it is due."""
        now, options = self._clock(), self.options
        if self.position.iteration - self._row_iteration >= options.log_every:
            self._write_row(now)
        if now - self._saved_time >= options.checkpoint_minutes * _MINUTE:
            self._save()
        elif now - self._sample_time >= options.sample_minutes * _MINUTE:
            self._write_samples(now)

    def _write_row(self, now: float) -> None:
        """Writes the means over the iterations since the last row."""
        place, steps = self.position, self.position.iteration - self._row_iteration
        losses = self._row_losses
        means = {name: sum(row[name] for row in losses) / len(losses) for name in losses[0]}
        row = {
            "iteration": place.iteration,
            "epoch": place.epoch,
            "pictures": place.source_length,
            "elapsed_seconds": round(self._elapsed(), 1),
            "seconds_per_iteration": (now - self._row_time) / steps,
            "learning_rate": self._learning_rate,
            "skipped": place.skipped,
            **means,
        }
        self._row_losses, self._row_time, self._row_iteration = [], now, place.iteration
        self._reporter.row(row, self._progress())

    def _write_samples(self, now: float) -> None:
        self._sample_time = now
        averaged = self.run_state.average.full_state(self.detector)
        images = self._samples.draw(self.detector, averaged, self._device)
        self._reporter.samples(self.position.iteration, images)
        self._reporter.curve()

    def _save(self) -> Path:
        """Writes the state and the averaged weights; returns the path of the weights."""
        options, place = self.options, self.position
        place.elapsed_seconds = self._elapsed()
        if self._row_losses and place.iteration > self._row_iteration:
            self._write_row(self._clock())
        save_state(
            options.output / STATE_FILE,
            self.run_state,
            SavedRun(place, self._labels, self._name),
            options.to_dict(),
        )
        path = options.output / MODEL_FILE
        save_checkpoint(
            path,
            self.run_state.average.full_state(self.detector),
            self.detector.config,
            self._labels,
            score_threshold=options.score_threshold,
            name=self._name,
            description=f"trained for {place.iteration} iterations of {options.batch_size}",
            category_ids=self._category_ids,
            half=options.export_half,
        )
        self._write_samples(self._clock())
        self._saved_time = self._clock()
        return path
