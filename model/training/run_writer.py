"""What a run writes: log rows, checkpoints, validations, samples, and the report at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.evaluation.operating_points import best_threshold, class_curves
from model.training.advice import no_hit
from model.training.events import Callback, RunEnd, RunStart
from model.training.final_report import RunResult, write_report
from model.training.model_card import model_card
from model.training.options import TrainOptions
from model.training.report import Pace, Reporter
from model.training.resume import stored_options
from model.training.run_folder import LAST_FILE, MODEL_FILE, STATE_FILE
from model.training.samples import SampleImages
from model.training.sources import ImageSource
from model.training.state import Position, Run, SavedRun, save_state
from model.training.validation import (
    FEWEST_BOXES,
    Validation,
    ValidationAbandoned,
    Validator,
)
from model.weights.checkpoint import load_detector, save_checkpoint

_DEFAULT_THRESHOLD = 0.4


class RunWriter:
    """Writes the files of one run.

    Args:
        run: the parts whose state is saved.
        source: the training images.
        labels: names of the classes.
        options: of the run.
        reporter: shows and logs the progress.
        device: of the network.
        category_ids: COCO category id of each class; None: unknown.
        validator: scores weights; None: there are no validation images.
        callback: gets the events of the run.

    Attributes:
        name: of the model.
        model_path: of the weights to serve.
    """

    def __init__(  # noqa: PLR0913 - the parts of a run
        self,
        run: Run,
        source: ImageSource,
        labels: Sequence[str],
        options: TrainOptions,
        reporter: Reporter,
        *,
        device: torch.device,
        category_ids: Sequence[int] | None,
        validator: Validator | None,
        callback: Callback,
        num_processes: int = 1,
    ) -> None:
        """Writes nothing yet."""
        self._run = run
        self._source = source
        self._labels = tuple(labels)
        self._options = options
        self._reporter = reporter
        self._device = device
        self._category_ids = category_ids
        self._validator = validator
        self._callback = callback
        self._images_per_step = options.batch_size * options.accumulate * num_processes
        self._losses: list[dict[str, float]] = []  # since the last row
        self._last_losses: dict[str, float] = {}
        self._samples: SampleImages | None = None
        self._warned: set[str] = set()  # warnings without their numbers
        self.name = options.name or run.detector.config.name
        self.model_path = options.output / MODEL_FILE

    @property
    def validates(self) -> bool:
        """Whether there are validation images (in the first process only)."""
        return self._validator is not None

    @property
    def has_losses(self) -> bool:
        """Whether there are losses for a row."""
        return bool(self._losses)

    def start(self, start: RunStart) -> None:
        """Reads the sample images and announces the start."""
        self._samples = SampleImages(self._source, self._options, self._labels)
        self._callback.on_start(start)

    def add_losses(self, values: dict[str, float]) -> None:
        """Adds the losses of a step to the next row."""
        self._losses.append(values)

    def write_row(self, row: dict[str, Any], pace: Pace, scores: dict[str, float] | None) -> None:
        """Writes a row with the mean losses, and with the scores of a validation."""
        losses, self._losses = self._losses, []
        if losses:
            row |= {name: sum(each[name] for each in losses) / len(losses) for name in losses[0]}
            self._last_losses = {name: row[name] for name in losses[0]}
        elif scores is None:
            return
        else:
            row |= self._last_losses  # validated right after a row
        if scores is not None:
            row |= {f"val_{name}": value for name, value in scores.items() if "/" not in name}
        self._reporter.row(row, pace)
        self._callback.on_row(int(row["iteration"]), row)

    def validate(self, place: Position, progress: float) -> dict[str, float]:
        """Validates the averaged weights; keeps them if they are the best so far.

        Args:
            place: the position; its record of the best is updated.
            progress: of the run, 0..1.

        Returns:
            The scores by name.

        Raises:
            ValidationAbandoned: if a signal stops the run meanwhile.
        """
        assert self._validator is not None
        detector = self._run.detector
        weights = self._run.average.full_state(detector)
        validation = self._validator.validate(detector, weights)
        ap = validation.scores.ap or 0.0
        is_best = ap > place.best_ap
        place.validations_since_best = 0 if is_best else place.validations_since_best + 1
        if is_best or ap == 0 == place.best_ap:  # of weights that find nothing yet, the newest
            place.best_ap, place.best_iteration = ap, place.iteration
            self._export(self.model_path, weights, place, validation)
        warning = no_hit(validation.classes_without_hit(), place.iteration, progress)
        if warning is not None:
            self._warn_once(warning, warning.partition(" of: ")[2])
        if unread := validation.scores.unreadable_images:
            self._warn_once(
                f"warning: {len(unread)} validation images cannot be read and count as without "
                f"detections, the first: {unread[0]}"
            )
        scores = validation.values()
        self._callback.on_validation(place.iteration, scores, is_best)
        return scores

    def _warn_once(self, text: str, subject: str | None = None) -> None:
        """Prints a warning, unless there was one about the same subject."""
        if (subject or text) not in self._warned:
            self._warned.add(subject or text)
            self._reporter.line(text)

    def why_best_is_lost(self, place: Position, saved: SavedRun) -> str | None:
        """Returns why the best weights of a resumed run no longer count; None if they do."""
        if self._validator is None or place.best_iteration == 0:
            return None
        if not self.model_path.is_file():
            return f"{self.model_path} is missing"
        # States of older versions have no digest.
        if saved.validation not in (None, self._validator.data.digest):
            return "the validation images have changed"
        return None

    def save_state(self, place: Position) -> None:
        """Writes the state of the run."""
        digest = None if self._validator is None else self._validator.data.digest
        save_state(
            self._options.output / STATE_FILE,
            self._run,
            SavedRun(place, self._labels, self.name, digest),
            stored_options(self._options),
        )

    def save(self, place: Position) -> None:
        """Writes the state, the last averaged weights and samples."""
        self.save_state(place)
        weights = self._run.average.full_state(self._run.detector)
        if self._validator is not None:
            self._export(self._options.output / LAST_FILE, weights, place, None)
        if self._validator is None or place.best_iteration == 0:
            self._export(self.model_path, weights, place, None)
        self.write_samples(place)

    def write_samples(self, place: Position) -> None:
        """Writes a sheet of sample images, and the loss curve."""
        if self._samples is None:
            return
        averaged = self._run.average.full_state(self._run.detector)
        images = self._samples.draw(self._run.detector, averaged, self._device)
        self._reporter.samples(place.iteration, images)
        self._reporter.curve()

    def finish(self, place: Position, *, finished: bool) -> Path:
        """Chooses threshold and duplicate_iou of the best weights, and writes the report.

        Args:
            place: the position.
            finished: False if a signal stopped the run, which is then not reported on.

        Returns:
            The weights file to serve.

        Raises:
            ValidationAbandoned: if a signal stops the run before the report; the callbacks have
                been called.
        """
        files: tuple[Path, ...] = ()
        scores: dict[str, float] = {}
        if finished and self._validator is not None and place.best_iteration > 0:
            best, _ = load_detector(self.model_path, str(self._device))
            try:
                validation = self._validator.validate(
                    self._run.detector, best.state_dict(), final=True
                )
            except ValidationAbandoned:
                self._callback.on_end(RunEnd(self.model_path, place.iteration, False, {}, ()))
                raise
            scores = validation.values()
            of_best = replace(place, iteration=place.best_iteration)
            self._export(self.model_path, best.state_dict(), of_best, validation)
            threshold = self._threshold(validation)
            data = self._validator.data
            result = RunResult(
                self._options, place, validation, data, threshold, self._images_per_step
            )
            files = write_report(result)
            self._report_choices(validation, threshold, files)
        self._callback.on_end(RunEnd(self.model_path, place.iteration, finished, scores, files))
        return self.model_path

    def _report_choices(
        self, validation: Validation, threshold: float, files: Sequence[Path]
    ) -> None:
        assert self._validator is not None
        scores, why = validation.scores, "the best on these images"
        if not self._validator.data.is_telling:
            why = f"fewer than {FEWEST_BOXES} boxes are too few to choose by"
        self._reporter.line(
            f"best weights: AP {scores.ap or 0:.3f}, AP50 {scores.ap50 or 0:.3f} on the "
            f"{scores.num_images} validation images"
        )
        for row in scores.per_class:
            self._reporter.line(f"  {row.name}: AP50 {row.ap50 or 0:.3f}, {row.num_boxes} boxes")
        self._reporter.line(
            f"stored in the model: score threshold {threshold:.2f}, duplicate_iou "
            f"{validation.duplicate_iou:g} ({why}, unless given)"
        )
        if files:
            self._reporter.line(f"report: {files[0]}")

    def _threshold(self, validation: Validation | None) -> float:
        """Returns the default threshold: the user's, or the best on the validation images."""
        if self._options.score_threshold is not None:
            return self._options.score_threshold
        if validation is None or self._validator is None or not self._validator.data.is_telling:
            return _DEFAULT_THRESHOLD
        curves = class_curves(validation.predictions, self._validator.data.truth)
        return best_threshold(curves) or _DEFAULT_THRESHOLD

    def _export(
        self, path: Path, weights: Any, place: Position, validation: Validation | None
    ) -> None:
        """Writes a weights file."""
        options, config = self._options, self._run.detector.config
        length = f"{place.iteration} iteration{'s' * (place.iteration != 1)}"
        if validation is not None:
            config = replace(config, duplicate_iou=validation.duplicate_iou)
        save_checkpoint(
            path,
            weights,
            config,
            self._labels,
            score_threshold=self._threshold(validation),
            name=self.name,
            description=f"trained for {length} of {self._images_per_step} images",
            category_ids=self._category_ids,
            half=options.export_half,
            card=model_card(options, self._source, place, validation, self._images_per_step),
        )
