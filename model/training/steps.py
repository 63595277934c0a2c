"""The optimizer steps of a run: gradients of batches, accumulated, skipped or split into parts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from model.training.batches import Batch
from model.training.errors import TrainingFailed
from model.training.matcher import NonFiniteError
from model.training.objective import Objective
from model.training.optimizer import set_learning_rate
from model.training.options import TrainOptions
from model.training.out_of_memory import is_out_of_memory
from model.training.processes import Processes
from model.training.run_clock import RunClock
from model.training.schedule import learning_rate_factor
from model.training.state import Position, Run


class Steps:
    """Trains a network batch by batch.

    Args:
        run: network, optimizer and average, changed in place.
        objective: computes the losses.
        options: of the run.
        processes: that train together.
        clock: of the run, for the learning rate.
        report: called with lines for the user.

    Attributes:
        learning_rate: of the last step.
    """

    def __init__(  # noqa: PLR0913 - the parts of a step
        self,
        run: Run,
        objective: Objective,
        options: TrainOptions,
        *,
        processes: Processes,
        clock: RunClock,
        report: Callable[[str], None],
    ) -> None:
        """Makes no step yet."""
        self.learning_rate = 0.0
        self._run = run
        self._objective = objective
        self._options = options
        self._processes = processes
        self._clock = clock
        self._report = report
        self._parts = 1  # of a batch; doubled when memory runs out
        self._accumulated = 0  # batches
        self._bad_in_a_row = 0

    @property
    def is_accumulating(self) -> bool:
        """Whether batches since the last step wait for the next one."""
        return self._accumulated > 0

    def train_on(self, batch: Batch, place: Position) -> dict[str, float] | None:
        """Trains on one batch; steps the optimizer when enough batches are accumulated.

        Args:
            batch: on the network's device.
            place: of the run; a step, or a skipped one, is counted in it.

        Returns:
            The losses; None if they were not finite and the step was skipped.

        Raises:
            TrainingFailed: after too many skipped steps in a row, or without memory.
        """
        while True:
            try:
                values = self._accumulate(batch)
                if self._accumulated == self._options.accumulate:
                    self._step(place)
                self._bad_in_a_row = 0
                return values
            except NonFiniteError as error:
                self._skip(error, place)
                return None
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error)
            self._use_smaller_parts(len(batch.images), problem)  # after the error freed its frames

    def _accumulate(self, batch: Batch) -> dict[str, float]:
        """Adds the gradients of one batch; returns its losses, the means over its parts."""
        parts = batch.split(self._parts)
        rows = []
        for part in parts:
            losses = self._objective.losses(part)
            values = losses.values()
            if self._processes.any(not math.isfinite(values["total"])):
                bad = [name for name, value in values.items() if not math.isfinite(value)]
                raise NonFiniteError(f"not finite: {', '.join(bad) or 'in another process'}")
            share = len(part.images) / len(batch.images)
            scaled = self._run.scaler.scale(losses.total * share / self._options.accumulate)
            torch.autograd.backward(scaled)
            rows.append({name: value * share for name, value in values.items()})
        self._accumulated += 1
        return {name: sum(row[name] for row in rows) for name in rows[0]}

    def _use_smaller_parts(self, size: int, problem: str) -> None:
        """Splits batches further after memory ran out; the gradients are accumulated.

        Raises:
            TrainingFailed: if the parts are single images already.
        """
        self._run.optimizer.zero_grad(set_to_none=True)
        self._accumulated = 0
        if self._parts >= size or self._processes.count > 1:
            raise TrainingFailed(
                f"out of memory with {-(-size // self._parts)} image(s) at a time: use smaller "
                f"--sizes, a smaller --batch-size or fewer --denoising-queries ({problem[:200]})"
            )
        self._parts = min(self._parts * 2, size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._report(
            f"out of memory: batches of {size} are computed in {self._parts} parts from here on "
            "(same batch, more time)"
        )

    def _step(self, place: Position) -> None:
        """Sets the learning rate, clips the gradients, steps the optimizer, updates the average."""
        run, options = self._run, self._options
        factor = learning_rate_factor(
            options, place.iteration, self._clock.progress(place.iteration)
        )
        self.learning_rate = set_learning_rate(run.optimizer, factor)
        run.scaler.unscale_(run.optimizer)
        limit = options.clip_norm if options.clip_norm > 0 else math.inf
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        self._processes.average_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm) and not run.scaler.is_enabled():
            raise NonFiniteError("not finite: the gradient")
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.optimizer.zero_grad(set_to_none=True)
        run.average.update(run.detector)
        self._accumulated = 0
        place.iteration += 1

    def _skip(self, error: NonFiniteError, place: Position) -> None:
        """Skips a step; too many in a row end the run."""
        self._run.optimizer.zero_grad(set_to_none=True)
        self._accumulated = 0
        self._bad_in_a_row += 1
        place.skipped += 1
        self._report(f"skipped a step at iteration {place.iteration}: {error}")
        if self._bad_in_a_row >= self._options.max_skipped:
            raise TrainingFailed(
                f"{self._bad_in_a_row} losses in a row were not finite at iteration"
                f" {place.iteration}; the last: {error}; a lower --learning-rate or "
                "--amp off may help"
            )
