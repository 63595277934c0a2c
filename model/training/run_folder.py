"""The files of a run in its output folder, and the checks before they are written."""

from __future__ import annotations

import os
from pathlib import Path

from model.data.errors import OutputError
from model.data.output_files import FileSet
from model.training.options import TrainOptions
from model.training.report import CURVE_FILE, LOG_FILE

STATE_FILE = "last.pt"
MODEL_FILE = "model.safetensors"
LAST_FILE = "last.safetensors"  # with validation, where model.safetensors has the best weights
RUN_FILES = (MODEL_FILE, STATE_FILE, LAST_FILE, LOG_FILE, CURVE_FILE)


def check_run_folder(options: TrainOptions) -> None:
    """Refuses to replace the files of an earlier run, and inputs of this one.

    Raises:
        OutputError: if there is no state to resume and nothing says what to train; if there are
            files of an earlier run, and the options neither resume it nor overwrite them; if a file
            to write is an input; if the folder cannot be written.
    """
    folder = options.output
    given = (options.annotations, options.val_annotations, options.init_from)
    inputs = FileSet(filter(None, given))
    replaced = [folder / name for name in RUN_FILES if folder / name in inputs]
    if replaced:
        raise OutputError(
            f"{replaced[0]} is an input of this command and is not replaced by its output: choose "
            "another --output"
        )
    resumes = options.resume and (folder / STATE_FILE).exists()
    if options.resume and not resumes and options.model_fields_set <= {"output", "resume"}:
        raise OutputError(
            f"{folder} has no {STATE_FILE} to continue from; with the options of a new run, such "
            "as --data, --resume starts it"
        )
    if not options.overwrite and not resumes:
        present = [name for name in RUN_FILES if (folder / name).exists()]
        if present:
            raise OutputError(
                f"{folder} has {present[0]} of an earlier run: --resume continues a run that left "
                f"{STATE_FILE}, --overwrite replaces it, another --output keeps both"
            )
    _check_writable(folder)


def _check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be written, before the run has trained for hours."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"{folder} cannot be created: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} cannot be written: no permission in {place}")
