"""The entry point of training: options -> data -> network -> `Trainer` -> weights and report."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from model.data.errors import DataError
from model.training.advice import FEW_BOXES, NO_START
from model.training.errors import ProcessLost, TrainingFailed
from model.training.events import Callback, CallbackError, Callbacks, load_callback
from model.training.objective import choose_device
from model.training.options import TrainOptions
from model.training.own_data import TrainingData
from model.training.processes import Processes, joined_processes
from model.training.recipe import choose, is_untrained
from model.training.report import Reporter
from model.training.resume import resumed_options
from model.training.run_folder import (
    MODEL_FILE,
    STATE_FILE,
    check_run_folder,
    delete_unfinished_files,
    locked_folder,
)
from model.training.start import build_start, open_source
from model.training.stopping import TrainingStopped
from model.training.trainer import Trainer

__all__ = [
    "MODEL_FILE",
    "STATE_FILE",
    "CallbackError",
    "ProcessLost",
    "Trainer",
    "TrainingFailed",
    "TrainingStopped",
    "train",
]


def train(options: TrainOptions) -> Path:
    """Trains a detector and exports its averaged weights.

    SIGINT, SIGTERM or SIGHUP stop it after the current iteration. Started by torchrun, several
    processes train together.

    Returns:
        The exported safetensors file; `last.pt` next to it resumes the run.

    Raises:
        CallbackError: if a callback cannot be loaded or fails.
        DataError: if the data cannot be used.
        OutputError: if the output folder has files of another run, or another process uses it.
        ProcessLost: if another process of the run ends.
        TrainingFailed: after too many non-finite losses in a row, or without memory.
        TrainingStopped: after one of the signals, with everything saved.
        TrainingStateError: if a run cannot be resumed.
        ValueError: for options or start weights that do not fit.
    """
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    with joined_processes(device) as processes:
        check_run_folder(options)
        options.output.mkdir(parents=True, exist_ok=True)
        processes.any(False)  # no process writes before all have checked
        lock = locked_folder(options.output) if processes.is_first else nullcontext()
        with lock, Reporter(options.output, silent=not processes.is_first) as reporter:
            if processes.is_first:
                delete_unfinished_files(options.output)
            return _train(options, processes, reporter)


def _train(options: TrainOptions, processes: Processes, reporter: Reporter) -> Path:
    resumes = options.resume and (options.output / STATE_FILE).exists()
    if resumes:
        options, lines = resumed_options(options)
        for line in lines:
            reporter.line(line)
    elif options.resume:
        reporter.line(f"{options.output} has no {STATE_FILE}: the run starts anew")
    callback = _callbacks(options) if processes.is_first else Callback()
    try:
        data = open_source(
            options,
            report=(lambda text: print(text, file=sys.stderr)) if processes.is_first else None,
        )
    except DataError as error:
        if not resumes:
            raise
        raise DataError(
            f"{error}\nif the data of the run is in another place now, name it, as with --data"
        ) from error
    if not resumes:
        options = _with_choices(options, data, reporter, processes.count)
    if data.validation is not None:
        reporter.line(f"validation: {data.validation.description}")
        if not data.validation.is_telling:
            reporter.line(FEW_BOXES)
    elif options.has_own_data:
        why = " (too few images with boxes for --holdout)" if options.holdout > 0 else ""
        reporter.line(f"validation: none{why}; {MODEL_FILE} has the last weights")
    start = options
    if resumes:  # the saved state has all weights
        start = options.changed(init_from=None, pretrained_backbone=None)
    detector = build_start(start, data.labels, reporter.line)
    trainer = Trainer(
        detector,
        data.source,
        data.labels,
        options,
        reporter,
        category_ids=data.category_ids,
        validation=data.validation,
        callback=callback,
        processes=processes,
    )
    return trainer.run()


def _with_choices(
    options: TrainOptions, data: TrainingData, reporter: Reporter, processes: int
) -> TrainOptions:
    """Returns the options with what follows from the data and the start, and prints it."""
    facts = data.facts
    options, choices = choose(options, facts, processes)
    if facts is not None:
        reporter.line(
            f"data: {facts.num_images} images, {facts.num_boxes} boxes, {facts.num_classes} classes"
        )
    if choices:
        reporter.line("chosen for this run (the flag of the same name overrides a choice):")
    for choice in choices:
        reporter.line(f"  --{choice.flag} {choice.shown}  ({choice.reason})")
    if is_untrained(options):
        reporter.line(NO_START)
    return options


def _callbacks(options: TrainOptions) -> Callback:
    members = [load_callback(name) for name in options.callbacks]
    if options.tensorboard:
        from model.training.tensorboard import TensorBoard  # noqa: PLC0415 - an extra

        members.append(TensorBoard())
    return Callbacks(members)
