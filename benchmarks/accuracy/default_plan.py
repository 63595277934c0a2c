"""The plan of a long training in its folder: hours, the fall of the learning rate, its parts.

`plan.json` keeps what the options of earlier commands decided, so that the command without options
continues. `run`, `run-2`, ... are the run folders of the parts.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from benchmarks.accuracy.default_recipe import ANNEAL_HOURS, LATER_SHARE, Part
from model.training.report import read_log
from model.training.run_folder import LAST_FILE, MODEL_FILE, STATE_FILE
from model.training.state import read_position

PLAN_FILE = "plan.json"
HOURS = 12.0
_SECONDS = 3600.0


class PlanError(ValueError):
    """A plan that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Plan:
    """What has been decided for the training in a folder.

    Attributes:
        hours: of training, of all parts together.
        anneal_hours: at the end of them, in which the learning rate falls.
        annealing: whether the fall was started by a command; it is not started again.
        part: number of the current part, from 1.
        hours_before: of the earlier parts.
    """

    hours: float = HOURS
    anneal_hours: float = ANNEAL_HOURS
    annealing: bool = False
    part: int = 1
    hours_before: float = 0.0

    def run_folder(self, folder: Path) -> Path:
        """Returns the run folder of the current part."""
        return folder / ("run" if self.part == 1 else f"run-{self.part}")

    def current_part(self, folder: Path) -> Part:
        """Returns the current part.

        Raises:
            PlanError: if its hours are over before it begins.
        """
        hours = self.hours - self.hours_before
        if hours <= 0:
            raise PlanError(f"{self.hours:g} hours are over: --hours sets another number")
        earlier = replace(self, part=self.part - 1).run_folder(folder) if self.part > 1 else None
        return Part(
            self.run_folder(folder),
            None if earlier is None else _weights(earlier),
            hours,
            min(self.anneal_hours, hours),
            max(0.0, self.hours * LATER_SHARE - self.hours_before),
        )


@dataclass(frozen=True)
class Decisions:
    """What one command decides.

    Attributes:
        hours: of training in all; None: as before.
        anneal_hours: in which the learning rate falls; None: as before.
        anneal_now: starts the fall now, and so decides the hours. A repeated command does not
            start it again.
        new_part: starts a new run from the averaged weights of the present one.
    """

    hours: float | None = None
    anneal_hours: float | None = None
    anneal_now: bool = False
    new_part: bool = False


def read_plan(folder: Path) -> Plan:
    """Reads the plan of a folder; a folder without one has the default plan.

    Raises:
        PlanError: for a file that is not a plan, and for a folder that has a run without a plan.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        run = Plan().run_folder(folder)
        if run.exists():
            raise PlanError(f"{run} belongs to something else: choose another --folder")
        return Plan()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {each.name for each in fields(Plan)}
        return Plan(**{name: value for name, value in values.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PlanError(f"{path} is not a plan: {error}") from error


def write_plan(folder: Path, plan: Plan) -> None:
    """Writes the plan of a folder; the file is there as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{PLAN_FILE}.part"
    part.write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / PLAN_FILE)


def trained_hours(folder: Path, plan: Plan) -> float:
    """Returns the hours trained so far, of all parts.

    Raises:
        TrainingStateError: if the state of the run cannot be read.
    """
    state = plan.run_folder(folder) / STATE_FILE
    if not state.exists():
        return plan.hours_before
    return plan.hours_before + read_position(state).elapsed_seconds / _SECONDS


def _logged_hours(folder: Path, plan: Plan) -> float:
    """As `trained_hours`, from the log: for a state that cannot be read."""
    rows = read_log(plan.run_folder(folder))
    return plan.hours_before + (rows[-1]["elapsed_seconds"] / _SECONDS if rows else 0.0)


def changed_plan(folder: Path, plan: Plan, decisions: Decisions) -> Plan:
    """Returns the plan with the decisions of a command.

    Args:
        folder: of the training.
        plan: the present one.
        decisions: of the command.

    Raises:
        PlanError: if there is nothing to start a new part from, or the hours contradict.
        TrainingStateError: if the state of the run cannot be read.
    """
    hours, anneal_hours = decisions.hours, decisions.anneal_hours
    if decisions.anneal_now and hours is not None:
        raise PlanError("--anneal-now decides the hours: leave out --hours")
    if anneal_hours is not None:
        plan = replace(plan, anneal_hours=anneal_hours)
    if hours is not None:
        plan = replace(plan, hours=hours, annealing=False)
    if decisions.new_part:
        _weights(plan.run_folder(folder))
        plan = replace(plan, part=plan.part + 1, hours_before=_logged_hours(folder, plan))
    if decisions.anneal_now and not plan.annealing:
        trained = trained_hours(folder, plan)
        plan = replace(plan, hours=trained + plan.anneal_hours, annealing=True)
    if plan.anneal_hours > plan.hours:
        raise PlanError(
            f"{plan.anneal_hours:g} hours of falling learning rate do not fit into "
            f"{plan.hours:g} hours: --anneal-hours sets another number"
        )
    return plan


def _weights(run: Path) -> Path:
    """Returns the last averaged weights of a run."""
    for name in (LAST_FILE, MODEL_FILE):
        if (run / name).exists():
            return run / name
    raise PlanError(f"{run} has no weights to start a new part from")


@contextmanager
def sole_user(folder: Path, *, wait: bool = False) -> Iterator[int]:
    """Locks a folder, so that two commands do not write into it at once.

    Args:
        folder: created if missing.
        wait: until another process leaves it.

    Yields:
        The file descriptor of the lock; a process that inherits it holds the lock, too.

    Raises:
        PlanError: if another process has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise PlanError(f"another process trains in {folder}") from error
        yield lock.fileno()
