"""TensorBoard: the rows of the log and the validations as event files."""

from __future__ import annotations

from collections.abc import Mapping

from model.training.events import Callback, RunEnd, RunStart
from model.training.run_folder import TENSORBOARD_FOLDER

_COUNTERS = ("iteration", "epoch", "pictures", "skipped", "elapsed_seconds")


class TensorBoard(Callback):
    """Writes into the folder `tensorboard` of the run; needs the package tensorboard."""

    def __init__(self) -> None:
        """Writes nothing yet.

        Raises:
            ModuleNotFoundError: without the package.
        """
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

        self._open = SummaryWriter

    def on_start(self, start: RunStart) -> None:
        """Opens a file of events."""
        # Events of iterations that a resumed run repeats are dropped.
        self._writer = self._open(start.folder / TENSORBOARD_FOLDER, purge_step=start.iteration)

    def on_row(self, iteration: int, values: Mapping[str, float]) -> None:
        """Writes the losses."""
        for name, value in values.items():
            if name not in _COUNTERS and not name.startswith("val_"):
                self._writer.add_scalar(f"train/{name}", value, iteration)

    def on_validation(self, iteration: int, scores: Mapping[str, float], is_best: bool) -> None:
        """Writes the scores."""
        for name, value in scores.items():
            self._writer.add_scalar(f"val/{name}", value, iteration)
        self._writer.flush()

    def on_end(self, end: RunEnd) -> None:
        """Closes the file."""
        self._writer.close()
