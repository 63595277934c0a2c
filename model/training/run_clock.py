"""The time of a run: how much has passed, its progress, and how much is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from model.training.options import TrainOptions
from model.training.processes import Processes
from model.training.report import Pace
from model.training.schedule import run_progress

_MINUTE = 60.0


class RunClock:
    """Measures a run, the time before a resume included.

    Args:
        options: of the run.
        processes: that train together.
        clock: returns seconds; only differences are used.
    """

    def __init__(
        self,
        options: TrainOptions,
        processes: Processes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts a new run."""
        self._options = options
        self._processes = processes
        self.now = clock
        self.start(0, 0.0)

    def start(self, iteration: int, elapsed_seconds: float) -> None:
        """Starts, or continues after `iteration` steps and `elapsed_seconds` of training."""
        self._first_iteration = iteration
        self._elapsed_before = elapsed_seconds
        self._started = self.now()
        self._first_step_time: float | None = None

    def elapsed(self) -> float:
        """Seconds of training; the same in all processes, which all must call it."""
        return self._processes.largest(self.own_elapsed())

    def own_elapsed(self) -> float:
        """The same by this process's clock, for reports: the others need not call it, too."""
        return self._elapsed_before + self.now() - self._started

    def progress(self, iteration: int) -> float:
        """Returns the progress of the run, 0..1; the same in all processes, as `elapsed`."""
        return run_progress(self._options, iteration, self.elapsed())

    def own_progress(self, iteration: int) -> float:
        """The same by this process's clock."""
        return run_progress(self._options, iteration, self.own_elapsed())

    def end_first_step(self, now: float) -> bool:
        """Excludes the first iteration, which starts the loading processes, from the pace.

        Returns:
            Whether it is the first one.
        """
        is_first = self._first_step_time is None
        if is_first:
            self._first_step_time = now
        return is_first

    def pace(self, iteration: int, now: float) -> Pace:
        """Returns position and speed of the run."""
        options = self._options
        since = self._started if self._first_step_time is None else self._first_step_time
        steps = iteration - self._first_iteration - (self._first_step_time is not None)
        each = (now - since) / max(steps, 1)
        left = (options.max_iterations - iteration) * each
        if options.max_minutes is not None:
            left = min(left, options.max_minutes * _MINUTE - self.own_elapsed())
        return Pace(iteration, self.own_progress(iteration), each, left)
