"""The training loop: batches in, weights out; it can stop at any iteration and resume.

A `Trainer` is one run; a resumed run needs its position and its tensors (see state.py). It
decides what happens when; the optimizer steps are in steps.py, what is written in run_writer.py.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from model.data.errors import DataError
from model.network.detector import LiteDETR
from model.ops import select_implementation
from model.training.advice import too_short
from model.training.batches import BatchPlanner, load_batches, make_loader
from model.training.ema import ExponentialAverage
from model.training.errors import ProcessLost, TrainingFailed
from model.training.events import Callback, CallbackError, RunStart
from model.training.objective import Objective, choose_device, choose_precision
from model.training.optimizer import build_optimizer
from model.training.options import TrainOptions
from model.training.out_of_memory import advice_in_validation
from model.training.processes import Processes, command_to_continue, local_device
from model.training.report import Reporter
from model.training.resume import naming_saved_state
from model.training.run_clock import RunClock
from model.training.run_folder import STATE_FILE, delete_files_of_run
from model.training.run_writer import RunWriter
from model.training.schedule import run_progress
from model.training.sources import ImageSource
from model.training.state import Position, Run, TrainingStateError, load_state
from model.training.steps import Steps
from model.training.stopping import StopRequest, TrainingStopped
from model.training.validation import ValidationAbandoned, ValidationSet, Validator
from model.weights.header import CheckpointError

_MINUTE = 60.0
_LOADER = "DataLoader worker"  # in torch's messages
_PATIENT_SHARE = 0.25  # of a run, without a better AP; the learning rate falls in the second half
_TIMED_ITERATIONS = 5  # after which the length of the run is estimated


class Trainer:
    """One run.

    Args:
        detector: trained in place.
        source: the training images.
        labels: names of the classes.
        options: of the run.
        reporter: shows and logs the progress.
        category_ids: COCO category id of each class; None: unknown.
        validation: images to validate on; None: none.
        callback: gets the events of the run.
        processes: that train together; None: this one only.
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
        validation: ValidationSet | None = None,
        callback: Callback | None = None,
        processes: Processes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Builds the optimizer, the average and the losses."""
        self.options = options
        self.position = Position()
        self._source = source
        self._reporter = reporter
        self._processes = processes or Processes()
        self._clock = RunClock(options, self._processes, clock)
        select_implementation(options.kernel)
        self._device = local_device(choose_device(options.device))
        precision = choose_precision(options.amp, self._device)
        detector = detector.to(self._device).train()
        self.detector: LiteDETR = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._processes.share_weights(self.detector)
        self.run_state = Run(
            detector=self.detector,
            optimizer=build_optimizer(self.detector, options),
            average=ExponentialAverage(
                self.detector, options.ema_decay, options.ema_warmup_iterations
            ),
            scaler=torch.amp.GradScaler(self._device.type, enabled=precision is torch.float16),
        )
        self._steps = Steps(
            self.run_state,
            Objective(self.detector, options, precision, self._processes),
            options,
            processes=self._processes,
            clock=self._clock,
            report=reporter.line,
        )
        validator = None
        if validation is not None and self._processes.is_first:
            validator = Validator(
                validation,
                labels,
                self._device,
                options.duplicate_iou,
                lambda: self._stop.requested,
            )
        self._writer = RunWriter(
            self.run_state,
            source,
            labels,
            options,
            reporter,
            device=self._device,
            category_ids=category_ids,
            validator=validator,
            callback=callback or Callback(),
            num_processes=self._processes.count,
        )
        self._labels = tuple(labels)
        self._row_time = self._saved_time = clock()
        self._row_iteration = self._first_iteration = 0
        self._sample_time = -math.inf
        self._validation_time = -math.inf
        self._validation_seconds = 0.0
        self._stop_reason = ""
        self._stop = StopRequest()

    def run(self) -> Path:
        """Trains until the end of the run or a stop signal; see `train`.

        Raises:
            TrainingStopped: after the signal, with everything saved.
        """
        state = self.options.output / STATE_FILE
        # In all processes before the first one saves the state of a new run.
        resumed = self.options.resume and self._processes.any(state.exists())
        if resumed:
            self._load_state()
        elif self.options.overwrite and self._processes.is_first:
            delete_files_of_run(self.options.output)
        self._clock.start(self.position.iteration, self.position.elapsed_seconds)
        self._row_time = self._saved_time = self._validation_time = self._clock.now()
        self._row_iteration = self._first_iteration = self.position.iteration
        start = RunStart(
            self.options.output, self._labels, self.options.to_dict(), self.position.iteration
        )
        self._writer.start(start)
        with self._stop, naming_saved_state(self.options.output):
            try:
                if self._processes.is_first and not resumed:
                    self._writer.save_state(self.position)  # a killed run can be continued
                self._reporter.forget_after(self.position.iteration)
                while not (self._stops() or self._finished()):
                    self._run_epoch(planned=resumed)
                    resumed = False
                return self._end()
            except (CallbackError, CheckpointError, DataError, OSError, ProcessLost):
                self._save_after_error()
                raise
            except RuntimeError as error:  # raised at any place, by a handler of torch's
                if _LOADER not in str(error):
                    raise
                text = f"a process that loads images ended: {error}; --workers 0 uses none"
                raise TrainingFailed(text) from error

    def _load_state(self) -> None:
        """Continues from the saved state."""
        saved = load_state(self.options.output / STATE_FILE, self.run_state, self._labels)
        self.position = saved.position
        self._writer.name = self.options.name or saved.name or self._writer.name
        self._reporter.line(f"resumed at iteration {self.position.iteration}")
        reason = self._writer.why_best_is_lost(self.position, saved)
        if self._processes.any(reason is not None):
            self.position.forget_best()
            self._reporter.line(f"the search for the best weights starts again: {reason}")

    def _save_after_error(self) -> None:
        """Saves what the run has learned before an error of a file or callback ends it."""
        self.position.elapsed_seconds = self._clock.own_elapsed()
        if self._processes.is_first:
            # Such as of a full disk, or of weights that are worse than the saved ones.
            with contextlib.suppress(TrainingStateError, TrainingFailed):
                self.run_state.check_weights(self.position.iteration)
                self._writer.save_state(self.position)

    def _end(self) -> Path:
        """Validates, unless a signal stopped the run, saves and reports; returns the weights.

        Raises:
            TrainingStopped: if a signal stopped the run.
        """
        place, model = self.position, self._writer.model_path
        stopped = self._stops()
        if not stopped and place.iteration > 0:
            self._validate()
            stopped = self._stops()
        self._save()
        to_continue = command_to_continue(self.options.output)
        if stopped:
            reason = f"stopped at iteration {place.iteration} by a signal; to continue"
            self._reporter.line(f"{reason}: {to_continue}")
        elif place.iteration == self._first_iteration:
            self._reporter.line(
                f"nothing is left to train at iteration {place.iteration}: the run had reached its "
                "--max-iterations or --max-minutes"
            )
        else:
            self._reporter.line(f"finished at iteration {place.iteration}{self._stop_reason}")
        if self._processes.is_first:
            try:
                model = self._writer.finish(place, finished=not stopped)
            except ValidationAbandoned:
                stopped = True
                self._reporter.line(f"stopped by a signal; for the report: {to_continue}")
        if self._processes.any(stopped):  # whichever of them got the signal
            raise TrainingStopped(int(self._processes.largest(self._stop.number or 0)), model)
        return model

    def _stops(self) -> bool:
        """Whether a signal reached any of the processes."""
        return self._processes.any(self._stop.requested)

    def _finished(self) -> bool:
        return bool(self._stop_reason) or self._clock.progress(self.position.iteration) >= 1.0

    def _run_epoch(self, *, planned: bool) -> None:
        """Trains on the rest of the current epoch; `planned`: as the saved run planned it."""
        place = self.position
        # 0: saved before the first epoch was planned.
        self._source.refresh(place.epoch, (place.source_length or None) if planned else None)
        place.source_length = len(self._source)
        first, begun, before = place.iteration, place.batches, self._clock.elapsed()
        started = self._clock.now()
        final_from = 1 - self.options.final_share

        def is_final(batch: int) -> bool:
            done = first + (batch - begun) // self.options.accumulate
            elapsed = before + self._clock.now() - started  # planned ahead of the other processes
            return run_progress(self.options, done, elapsed) >= final_from > 0

        def is_later(_batch: int) -> bool:
            return before + self._clock.now() - started >= self.options.later_minutes * _MINUTE

        planner = BatchPlanner(
            self.options,
            len(self._source),
            place.epoch,
            begun,
            is_final,
            is_later=is_later,
            rank=self._processes.rank,
            processes=self._processes.count,
        )
        for batch in load_batches(make_loader(self._source, planner, self.options)):
            place.batches += 1
            losses = self._steps.train_on(batch.to(self._device), place)
            if losses is not None:
                self._writer.add_losses(losses)
            if self._steps.is_accumulating:
                continue  # partial sums of gradients are not saved
            if self._stops() or self._finished():
                return
            self._report_and_save()
        place.epoch, place.batches = place.epoch + 1, 0
        if self._validation_is_due(epoch_ended=True):
            self._validate()

    def _report_and_save(self) -> None:
        """Writes log rows, checkpoints and sample images, each when it is due."""
        now, options = self._clock.now(), self.options
        done = self.position.iteration - self._first_iteration
        if not self._clock.end_first_step(now) and done > 1:
            self._reporter.step(self._clock.pace(self.position.iteration, now))
        if done == _TIMED_ITERATIONS:
            self._report_length(now)
        if self.position.iteration - self._row_iteration >= options.log_every:
            self._write_row(now)
        if self._validation_is_due(epoch_ended=False):
            self._validate()
        if now - self._saved_time >= options.checkpoint_minutes * _MINUTE:
            self._save()
        elif now - self._sample_time >= options.sample_minutes * _MINUTE:
            self._sample_time = now
            self._writer.write_samples(self.position)

    def _report_length(self, now: float) -> None:
        """Prints when the run will end, and warns of a short one."""
        pace = self._clock.pace(self.position.iteration, now)
        left = pace.seconds_left / max(pace.seconds_per_iteration, 1e-9)
        expected = self.position.iteration + round(left)
        self._reporter.line(
            f"{pace.seconds_per_iteration:.1f} s per iteration: about {expected} iterations"
        )
        warning = too_short(expected, pace.seconds_per_iteration)
        if warning is not None:
            self._reporter.line(warning)

    def _write_row(self, now: float, scores: dict[str, float] | None = None) -> None:
        """Writes the means over the iterations since the last row."""
        place, steps = self.position, self.position.iteration - self._row_iteration
        row = {
            "iteration": place.iteration,
            "epoch": place.epoch,
            "pictures": place.source_length,
            "elapsed_seconds": round(self._clock.own_elapsed(), 1),
            "seconds_per_iteration": (now - self._row_time) / max(steps, 1),
            "learning_rate": self._steps.learning_rate,
            "skipped": place.skipped,
        }
        self._row_time, self._row_iteration = now, place.iteration
        self._writer.write_row(row, self._clock.pace(place.iteration, now), scores)

    def _validation_is_due(self, *, epoch_ended: bool) -> bool:
        """Whether to validate now; the same in all processes."""
        minutes, now = self.options.validate_minutes, self._clock.now()
        since = now - self._validation_time
        if minutes is not None:
            due = since >= minutes * _MINUTE
        else:
            due = epoch_ended and since >= 10 * self._validation_seconds
        # Not only to agree: the other processes wait here while the first one validates.
        return self._processes.any(due and self._writer.validates)

    def _validate(self) -> None:
        """Validates new averaged weights, and ends a run that stopped improving."""
        is_new = self.position.validated_iteration < self.position.iteration
        if self._writer.validates and is_new:
            started = self._clock.now()
            progress = self._clock.own_progress(self.position.iteration)
            self.run_state.check_weights(self.position.iteration)
            with contextlib.suppress(ValidationAbandoned), advice_in_validation():
                validation = self._writer.validate(self.position, progress)
                self._write_row(self._clock.now(), validation)
                self.position.validated_iteration = self.position.iteration
                if self.position.best_iteration == self.position.iteration:
                    self._save_state()  # a run that is killed later knows its best weights
            self._validation_time = self._clock.now()
            self._validation_seconds = self._validation_time - started
        if self._processes.any(self._is_out_of_patience()) and not self._stop_reason:
            worse = self.position.validations_since_best
            self._stop_reason = f": no better AP in {worse} validations (--patience)"

    def _is_out_of_patience(self) -> bool:
        """Whether the run has not improved for long, in validations and in its own length."""
        place, patience = self.position, self.options.patience
        if not 0 < patience <= place.validations_since_best:
            return False
        best = place.best_iteration if place.best_ap > 0 else 0
        share = (place.iteration - best) / max(place.iteration, 1)
        return share * self._clock.own_progress(place.iteration) >= _PATIENT_SHARE

    def _save_state(self) -> None:
        """Writes the state, unless it would lose gradients that are being summed."""
        self.position.elapsed_seconds = self._clock.own_elapsed()
        if self._processes.is_first and not self._steps.is_accumulating:
            self._writer.save_state(self.position)

    def _save(self) -> None:
        """Writes the state and the averaged weights."""
        self.position.elapsed_seconds = self._clock.own_elapsed()
        if self._writer.has_losses and self.position.iteration > self._row_iteration:
            self._write_row(self._clock.now())
        if self._processes.is_first:
            self.run_state.check_weights(self.position.iteration)
            self._writer.save(self.position)
        self._sample_time = self._saved_time = self._clock.now()
