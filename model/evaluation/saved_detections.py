"""The detections of an evaluation that runs, kept on disk, so that a stopped one can be resumed.

A JSON line describes the run: the model, its precision and the annotations. One line per image
follows. Numbers are written as they are, so resumed results are those of a run without a stop.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.data.errors import OutputError
from model.detections import Detections
from model.evaluation.detections import ImageDetections

_FORMAT: Final = "lite-detr-eval-1"
_LONGEST_HEADER = 1 << 16  # bytes; a foreign file may have no line feed at all


def partial_file(results: Path) -> Path:
    """Returns the file of the detections so far of a run that will write `results`."""
    return results.with_name(f"{results.name}.partial")


class SavedDetections:
    """The open partial file, locked for this process."""

    def __init__(self, path: Path, file: FileIO, entries: dict[int, ImageDetections]) -> None:
        """Uses a file that `open_saved_detections` has read."""
        self.path = path
        self._file = file
        self._entries = entries

    def of(self, image_ids: Iterable[int]) -> dict[int, ImageDetections]:
        """Returns what is in the file of these images, by image id."""
        return {key: self._entries[key] for key in image_ids if key in self._entries}

    def add(self, entries: Iterable[ImageDetections]) -> None:
        """Appends the detections of images.

        Raises:
            OutputError: if the file cannot be written, for example on a full disk.
        """
        data = b"".join(_line(_to_json(entry)) for entry in entries)
        with _disk_errors(self.path):
            _write_all(self._file, data)

    def delete(self) -> None:
        """Deletes the file: the results are complete."""
        with suppress(OSError):
            self.path.unlink()


@contextmanager
def open_saved_detections(
    path: Path, run: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[SavedDetections]:
    """Opens a partial file, or creates it.

    Args:
        path: the file.
        run: JSON values that identify the run; detections of another run are not used.
        overwrite: replaces the detections of another run. Other files are never replaced.

    Raises:
        OutputError: if the file is of another run or no such file, is in use by another process,
            or cannot be written.
    """
    with _disk_errors(path):
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a regular file")
        file = path.open("ab+", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{path} is in use by another evaluation") from error
        with _disk_errors(path):
            entries = _read(path, file, run, overwrite=overwrite)
        yield SavedDetections(path, file, entries)


def _read(
    path: Path, file: FileIO, run: Mapping[str, Any], *, overwrite: bool
) -> dict[int, ImageDetections]:
    """Returns the entries of the file; a new one, or one of another run, gets its first line."""
    first = _line({"format": _FORMAT, "run": dict(run)})
    file.seek(0)
    head = file.read(len(first))
    if head == first:
        return _read_entries(file, len(first))
    if not first.startswith(head):  # otherwise it is new, or was cut short on a full disk
        differing = _differing(path, (head + file.read(_LONGEST_HEADER)).split(b"\n", 1)[0], run)
        if not overwrite:
            raise OutputError(
                f"{path} has the detections of another run, whose {differing}: delete it, name "
                "another file of results, or add --overwrite to start again"
            )
    file.truncate(0)
    _write_all(file, first)
    return {}


def _read_entries(file: FileIO, start: int) -> dict[int, ImageDetections]:
    """Returns the entries up to the first line that is incomplete; it and the rest are cut off."""
    entries: dict[int, ImageDetections] = {}
    for line in file.readall().splitlines(keepends=True):
        entry = _from_line(line)
        if entry is None:
            file.truncate(start)
            break
        entries[entry.image_id] = entry
        start += len(line)
    return entries


def _differing(path: Path, header: bytes, run: Mapping[str, Any]) -> str:
    """Returns which values of a run differ from those of another file's first line.

    Raises:
        OutputError: if the file is no partial file.
    """
    try:
        found = json.loads(header)
        if found["format"] != _FORMAT:
            raise ValueError(found["format"])
        other = dict(found["run"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise OutputError(
            f"{path} is needed for the detections so far, but exists and is something else: move "
            "it away, or name another file of results"
        ) from error
    names = [name for name in {**other, **run} if other.get(name) != run.get(name)]
    return " and ".join(f"{name} is {other.get(name)}, not {run.get(name)}" for name in names)


def _to_json(entry: ImageDetections) -> dict[str, Any]:
    found = entry.detections
    return {
        "image_id": entry.image_id,
        "milliseconds": entry.milliseconds,
        "scores": found.scores.tolist(),
        "category_ids": found.labels.tolist(),
        "boxes_xyxy": found.boxes_xyxy.tolist(),
    }


def _from_line(line: bytes) -> ImageDetections | None:
    """Returns the entry of a line; None for one that was not written to its end."""
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
        scores = np.array(values["scores"], np.float32)
        labels = np.array(values["category_ids"], np.int64)
        boxes = np.array(values["boxes_xyxy"], np.float32).reshape(-1, 4)
        if not len(scores) == len(labels) == len(boxes):
            return None
        detections = Detections(scores, labels, boxes)
        return ImageDetections(int(values["image_id"]), detections, float(values["milliseconds"]))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a write may be partial when the disk fills up
        rest = rest[file.write(rest) :]


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Re-raises OSError as OutputError with the file's name."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
