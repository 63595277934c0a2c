"""What a run reports while it trains, and the protocol of those who listen.

A `Callback` gets each event as it happens: TensorBoard, W&B, MLflow or code of your own
(docs/fine-tune.md has examples). `--callbacks package.module:name` adds one; `name` is a class or
function that is called without arguments. An exception in a callback ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast


@dataclass(frozen=True)
class RunStart:
    """The start of a run, or its continuation.

    Attributes:
        folder: of the outputs.
        labels: class names.
        options: the options of the run as plain JSON values, chosen ones included.
        iteration: 0, or the iteration that a resumed run continues from.
    """

    folder: Path
    labels: tuple[str, ...]
    options: Mapping[str, Any]
    iteration: int


@dataclass(frozen=True)
class RunEnd:
    """The end of a run.

    Attributes:
        model: the weights file to serve.
        iteration: optimizer steps done.
        finished: False if a signal stopped the run.
        scores: of the model on the validation images, such as ap and ap50; empty without any.
        files: report, charts and other files that the run wrote.
    """

    model: Path
    iteration: int
    finished: bool
    scores: Mapping[str, float]
    files: tuple[Path, ...]


_METHODS = ("on_start", "on_row", "on_validation", "on_end")


class Callback:
    """Listens to a run; every method may be overridden, and does nothing here."""

    def on_start(self, start: RunStart) -> None:
        """Called before the first iteration."""

    def on_row(self, iteration: int, values: Mapping[str, float]) -> None:
        """Called with each row of log.jsonl: losses, learning rate, and val_ap when validated."""

    def on_validation(self, iteration: int, scores: Mapping[str, float], is_best: bool) -> None:
        """Called after each validation with ap, ap50 and the AP50 of each class, 0..1."""

    def on_end(self, end: RunEnd) -> None:
        """Called after the last file is written."""


class CallbackError(ValueError):
    """A callback that cannot be loaded or that failed; the message names it and the cause."""


class Callbacks(Callback):
    """Passes each event to several callbacks, in their order.

    Raises:
        CallbackError: by each method, for an exception of a callback.
    """

    def __init__(self, members: Sequence[Callback] = ()) -> None:
        """Takes the callbacks."""
        self._members = tuple(members)

    def on_start(self, start: RunStart) -> None:
        """See `Callback`."""
        self._call("on_start", start)

    def on_row(self, iteration: int, values: Mapping[str, float]) -> None:
        """See `Callback`."""
        self._call("on_row", iteration, values)

    def on_validation(self, iteration: int, scores: Mapping[str, float], is_best: bool) -> None:
        """See `Callback`."""
        self._call("on_validation", iteration, scores, is_best)

    def on_end(self, end: RunEnd) -> None:
        """See `Callback`."""
        self._call("on_end", end)

    def _call(self, method: str, *values: Any) -> None:
        for member in self._members:
            try:
                getattr(member, method)(*values)
            except Exception as error:
                name = f"{type(member).__name__}.{method}"
                raise CallbackError(f"callback {name} failed: {_described(error)}") from error


def load_callback(name: str) -> Callback:
    """Creates the callback of an option.

    Args:
        name: `package.module:name` of a class or function without arguments.

    Raises:
        CallbackError: if there is no such callback, or if it cannot be created.
    """
    module, _, attribute = name.partition(":")
    try:
        create = cast(Callable[[], Callback], getattr(import_module(module), attribute))
    except (ImportError, AttributeError, ValueError) as error:
        raise CallbackError(
            f"callback {name!r} cannot be loaded ({error}); it is written package.module:name, and "
            "PYTHONPATH must have the folder of the module"
        ) from error
    except Exception as error:  # of the module's own code
        raise CallbackError(f"callback {name!r} cannot be loaded: {_described(error)}") from error
    try:
        callback = create() if callable(create) else create
    except Exception as error:
        raise CallbackError(f"callback {name!r} cannot be created: {_described(error)}") from error
    absent = [method for method in _METHODS if not callable(getattr(callback, method, None))]
    if absent:
        raise CallbackError(f"callback {name!r} has no method {absent[0]}: see `Callback`")
    return callback


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
