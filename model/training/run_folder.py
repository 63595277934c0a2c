"""The files of a run in its output folder, and the checks before they are written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.data.errors import OutputError
from model.data.output_files import FileSet
from model.training.options import TrainOptions
from model.training.report import CURVE_FILE, LOG_FILE, SAMPLES_FOLDER

STATE_FILE = "last.pt"
MODEL_FILE = "model.safetensors"
LAST_FILE = "last.safetensors"  # with validation, where model.safetensors has the best weights
REPORT_FILE = "report.md"
REPORT_FOLDER = "report"
TENSORBOARD_FOLDER = "tensorboard"
RUN_FILES = (MODEL_FILE, STATE_FILE, LAST_FILE, LOG_FILE, CURVE_FILE)
_OTHER_FILES = (
    REPORT_FILE,
    *(f"{REPORT_FOLDER}/{name}.png" for name in ("training", "precision_recall", "f1")),
    f"{REPORT_FOLDER}/confusion.png",
    f"{REPORT_FOLDER}/worst_*.jpg",
    f"{SAMPLES_FOLDER}/iteration_*.jpg",
    f"{TENSORBOARD_FOLDER}/events.out.tfevents.*",
)


# Options that say what is trained; --resume with others only, such as the length, can be a mistyped
# folder.
_SUBJECTS = {"data", "cache", "annotations", "variant", "generator_edition", "edition_1_share"}
_SUBJECTS |= {"live_scenes", "init_from", "pretrained_backbone"}
_UNFINISHED = (
    *(f".{name}.*.part" for name in (STATE_FILE, "*.safetensors", LOG_FILE)),
    f"{STATE_FILE}.part",  # of older versions
)


def check_run_folder(options: TrainOptions) -> None:
    """Refuses to replace the files of an earlier run, and inputs of this one.

    Raises:
        OutputError: if there is no state to resume and nothing says what to train; if there are
            files of an earlier run, and the options neither resume it nor overwrite them; if a file
            to write is an input; if the folder cannot be written.
    """
    folder = options.output
    if folder.is_file():
        hint = f": {folder.parent} may be meant" if folder.name == STATE_FILE else ""
        raise OutputError(f"{folder} is a file, not the folder of a run{hint}")
    given = (options.annotations, options.val_annotations, options.init_from)
    inputs = FileSet(filter(None, given))
    replaced = [folder / name for name in RUN_FILES if folder / name in inputs]
    if replaced:
        raise OutputError(
            f"{replaced[0]} is an input of this command and is not replaced by its output: choose "
            "another --output"
        )
    resumes = options.resume and (folder / STATE_FILE).exists()
    if not options.overwrite and not resumes:
        present = [name for name in RUN_FILES if (folder / name).exists()]
        if present:
            raise OutputError(
                f"{folder} has {present[0]} of an earlier run: --resume continues a run that left "
                f"{STATE_FILE}, --overwrite replaces it, another --output keeps both"
            )
    if options.resume and not resumes and not options.model_fields_set & _SUBJECTS:
        raise OutputError(
            f"{folder} has no {STATE_FILE} to continue from; with an option that says what to "
            "train (--data, --cache, --annotations, --variant, --init-from, --generator-edition), "
            "--resume starts a new run"
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


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder; where the file system has no locks, nothing does.

    Raises:
        OutputError: if another process trains in it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{folder} is in use by another run: wait for its end, or choose another --output"
            ) from None
        except OSError:  # such as a network file system
            pass
        try:
            yield
        finally:
            with suppress(OSError):  # loading processes may still have it open
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def delete_unfinished_files(folder: Path) -> None:
    """Deletes what a run that was killed had not finished to write; the folder must be locked."""
    for pattern in _UNFINISHED:
        for file in folder.glob(pattern):
            with suppress(OSError):
                file.unlink()


def delete_files_of_run(folder: Path) -> None:
    """Deletes what an earlier run wrote, so that no file of it stays next to those of a new run.

    Raises:
        OutputError: if a file cannot be deleted.
    """
    for pattern in (*RUN_FILES, *_OTHER_FILES):
        for file in folder.glob(pattern):
            try:
                file.unlink()
            except OSError as error:
                raise OutputError(f"{file} cannot be replaced: {error.strerror}") from error
