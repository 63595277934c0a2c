"""The state of a run on disk: written atomically, read without running code from the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from model.data.input_files import check_regular_file
from model.data.output_files import replacing
from model.network.detector import LiteDETR
from model.training.ema import ExponentialAverage
from model.training.errors import TrainingFailed
from model.weights.header import TRAINING_STATE_TAG

_FORMAT = f"{TRAINING_STATE_TAG.decode()}1"
_LABELS_SHOWN = 6


class TrainingStateError(ValueError):
    """A training state that cannot be used; the message names the file and the cause."""


@dataclass
class Position:
    """The position of a run."""

    iteration: int = 0  # optimizer steps done
    epoch: int = 0
    batches: int = 0  # done in this epoch
    source_length: int = 0  # number of images that this epoch was planned with
    elapsed_seconds: float = 0.0  # of training, resumed runs included
    skipped: int = 0  # steps skipped because a loss was not finite
    best_ap: float = -1.0  # of the validations; -1 before the first
    best_iteration: int = 0
    validations_since_best: int = 0
    validated_iteration: int = -1  # the last one whose weights were validated

    def forget_best(self) -> None:
        """Lets the next validation be the first one."""
        self.best_ap, self.best_iteration, self.validations_since_best = -1.0, 0, 0
        self.validated_iteration = -1


@dataclass(frozen=True)
class Run:
    """The parts whose state is saved."""

    detector: LiteDETR
    optimizer: torch.optim.Optimizer
    average: ExponentialAverage
    scaler: torch.amp.GradScaler

    def check_weights(self, iteration: int) -> None:
        """Refuses weights that must not replace the saved ones.

        Raises:
            TrainingFailed: for NaN or infinite weights.
        """
        tensors = (*self.detector.state_dict().values(), *self.average.state.values())
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise TrainingFailed(
                f"the weights are NaN or infinite at iteration {iteration} and are not saved; a "
                "lower --learning-rate or --amp off may help"
            )


@dataclass(frozen=True)
class SavedRun:
    """What a training state contains in addition to tensors."""

    position: Position
    labels: tuple[str, ...]  # names of the classes
    name: str | None  # of the model
    validation: str | None = None  # digest of the validation images; None without any


def save_state(path: Path, run: Run, saved: SavedRun, options: dict[str, Any]) -> None:
    """Writes everything that `load_state` needs, replacing the old file atomically.

    Raises:
        TrainingStateError: if it cannot be written, such as on a full disk; the old file is kept.
        KeyboardInterrupt: likewise, on a second signal.
    """
    state = {
        "format": _FORMAT,
        "detector": run.detector.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "average": run.average.state,
        "average_updates": run.average.updates,
        "scaler": run.scaler.state_dict(),
        "position": asdict(saved.position),
        "labels": list(saved.labels),
        "name": saved.name,
        "validation": saved.validation,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "options": options,
    }
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        if isinstance(error.__context__, KeyboardInterrupt):  # a second signal, likewise
            raise error.__context__ from None
        cause = getattr(error, "strerror", None) or "is the disk full?"
        raise TrainingStateError(f"{path} cannot be written: {cause}") from error


def read_saved_options(path: Path) -> dict[str, Any]:
    """Returns the options in a training state, as plain JSON values.

    Raises:
        TrainingStateError: if the file is damaged.
    """
    options = _read(path).get("options")
    return dict(options) if isinstance(options, dict) else {}


def read_position(path: Path) -> Position:
    """Returns the position in a training state; fields of other versions are left out.

    Raises:
        TrainingStateError: if the file is damaged.
    """
    return _position(_read(path).get("position", {}))


def _position(values: dict[str, Any]) -> Position:
    names = {field.name for field in fields(Position)}
    return Position(**{name: value for name, value in values.items() if name in names})


def _read(path: Path) -> dict[str, Any]:
    """Reads a training state.

    Raises:
        TrainingStateError: if the file is damaged or of another kind.
    """
    try:
        check_regular_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        cause = error.strerror or error
        raise TrainingStateError(f"{path} cannot be read: {cause}") from error
    except Exception as error:  # torch raises errors of many types for a damaged file
        reason = str(error).partition(".")[0].partition("\n")[0] or type(error).__name__
        raise TrainingStateError(
            f"{path} cannot be read, it may be damaged or incomplete ({reason}); --init-from of "
            "its model.safetensors starts a new run from its weights"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise TrainingStateError(f"{path} is not a training state of this program")
    return state


def load_state(path: Path, run: Run, labels: Sequence[str]) -> SavedRun:
    """Restores a run in place.

    Args:
        path: the file.
        run: gets the saved tensors.
        labels: names of the classes in the data; they must be those of the saved run.

    Raises:
        TrainingStateError: if the file is damaged, or of other classes, another model or another
            optimizer.
    """
    state = _read(path)
    # States of older versions have no labels.
    saved_labels = tuple(state.get("labels", labels))
    if saved_labels != tuple(labels):
        raise TrainingStateError(
            f"{path} cannot be resumed with other classes: it was trained for "
            f"{_listed(saved_labels)}, the data has {_listed(labels)}; --init-from of its "
            "model.safetensors starts a new run from its weights"
        )
    rates = [group["base_lr"] for group in run.optimizer.param_groups]
    try:
        run.detector.load_state_dict(state["detector"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.average.load(state["average"], state["average_updates"])
        run.scaler.load_state_dict(state["scaler"])
        for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
            group["base_lr"] = rate  # the new options' rate, not the saved one
        position = _position(state["position"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingStateError(f"{path} does not fit this run: {error}") from error
    torch.set_rng_state(state["rng"])
    if len(state["cuda_rng"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return SavedRun(position, saved_labels, state.get("name"), state.get("validation"))


def _listed(labels: Sequence[str]) -> str:
    """Returns the number of labels and the first ones."""
    more = ", ..." if len(labels) > _LABELS_SHOWN else ""
    return f"{len(labels)} ({', '.join(labels[:_LABELS_SHOWN])}{more})"
