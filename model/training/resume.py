"""Continuing a run: its options come from the saved state, new ones are merged into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.training.options import TrainOptions
from model.training.processes import command_to_continue, is_first_process
from model.training.run_folder import STATE_FILE
from model.training.state import TrainingStateError, read_saved_options

# What a run is; another value means another run.
_FIXED = ("variant", "input_side", "seed")
# Where the run and its start are; not compared.
_NOT_COMPARED = ("output", "overwrite", "resume", "init_from", "pretrained_backbone")
_PATHS = ("data", "cache", "annotations", "images", "val_annotations", "val_images", "init_from")


@contextmanager
def naming_saved_state(folder: Path) -> Iterator[None]:
    """Adds the command that continues the run to an exception, if there is a saved state."""
    try:
        yield
    except BaseException as error:
        if is_first_process() and (folder / STATE_FILE).exists():
            command = command_to_continue(folder)
            error.add_note(f"to continue from the last saved state: {command}")
        raise


def stored_options(options: TrainOptions) -> dict[str, Any]:
    """Returns the options for the saved state, with absolute paths."""
    values = options.to_dict()
    for name in _PATHS:
        path = getattr(options, name)
        values[name] = None if path is None else str(Path(path).absolute())
    return values


def resumed_options(options: TrainOptions) -> tuple[TrainOptions, list[str]]:
    """Merges the given options into those of the saved run.

    Args:
        options: those of the user; only the given ones count.

    Returns:
        The options of the continued run, and a line for each that differs from the saved run.

    Raises:
        TrainingStateError: if the state cannot be read, or an option cannot change.
    """
    state = options.output / STATE_FILE
    saved = {
        name: value
        for name, value in read_saved_options(state).items()
        if name in TrainOptions.model_fields
    }
    given = options.to_dict()
    changed = {
        name: given[name]
        for name in options.model_fields_set - set(_NOT_COMPARED)
        if name in given and not _same(name, saved.get(name), given[name])
    }
    conflicts = sorted(name for name in changed if name in _FIXED and name in saved)
    if conflicts:
        flags = ", ".join(
            f"--{name.replace('_', '-')} is {saved[name]} in it, {given[name]} here"
            for name in conflicts
        )
        raise TrainingStateError(
            f"{state} cannot be continued with other options: {flags}; leave them out, or start a "
            "new run in another --output"
        )
    lines = [
        f"--{name.replace('_', '-')} is {changed[name]} from here on, it was {saved.get(name)}"
        for name in sorted(changed)
    ]
    lines += [
        f"--{name.replace('_', '-')} is ignored: the weights are those of {state}"
        for name in ("init_from", "pretrained_backbone")
        if name in options.model_fields_set and not _same(name, saved.get(name), given[name])
    ]
    if any(changed.get(name) for name in ("data", "cache", "annotations")):
        saved |= dict.fromkeys(("data", "cache", "annotations", "images"))
    values = {**saved, **changed, "output": options.output, "overwrite": False, "resume": True}
    try:
        return TrainOptions.model_validate(values), lines
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"{name}: " for name in problem["loc"][:1])
        raise TrainingStateError(
            f"{state} has options that do not fit: {place}{problem['msg']}"
        ) from error


def _same(name: str, saved: Any, given: Any) -> bool:
    """Whether a given value is the saved one; paths are compared as absolute ones."""
    if name in _PATHS and isinstance(saved, str) and isinstance(given, str):
        return Path(saved).resolve() == Path(given).resolve()
    return bool(saved == given)
