"""What a format of annotated data provides, and helpers that the formats share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from model.data.errors import DataError
from model.data.findings import Findings
from model.images.formats import IMAGE_SUFFIXES

# Names under which data sets store their splits.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class RawDataSet:
    """One split of a data set as a COCO document, before it is checked.

    Attributes:
        document: with the lists images, annotations and categories.
        folder: that the file names are relative to.
        subject: the file or folder of the annotations, for messages.
    """

    document: dict[str, Any]
    folder: Path
    subject: Path


class DataFormat(Protocol):
    """A format of annotated data."""

    name: str
    layout: str  # one line that describes the files, for messages

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder has this format."""

    def read(self, path: Path, split: str, findings: Findings) -> RawDataSet | None:
        """Reads a split.

        Args:
            path: a file or folder that `recognises` accepts.
            split: a key of `SPLIT_NAMES`.
            findings: gets the errors and oddities of the format; those of any COCO document are
                found later.

        Returns:
            The data; None if there is no such split.

        Raises:
            DataError: for data that cannot be read at all.
        """


def split_names(split: str) -> tuple[str, ...]:
    """Returns the names under which a split may be stored."""
    return SPLIT_NAMES.get(split, (split,))


def files_of(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of a pattern in a folder, sorted, without hidden ones, as of macOS."""
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))


class EntryFinder:
    """Finds files and folders without regard to case; each folder is listed once."""

    def __init__(self) -> None:
        """Starts without listed folders."""
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, *names: str) -> Path:
        """Returns `folder/names...` in the spelling of the file system.

        An entry of exactly this name comes first; a name that is in no case there stays.
        """
        for name in names:
            if os.path.exists(folder / name):  # Path.exists raises for a name that is too long
                folder = folder / name
            else:
                folder = folder / self._stored(folder).get(name.lower(), name)
        return folder

    def _stored(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            self._names[folder] = {name.lower(): name for name in _listing(folder)}
        return self._names[folder]


def _listing(folder: Path) -> list[str]:
    """Returns the names in a folder, sorted; none for one that is absent or cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def image_files(folder: Path) -> list[Path]:
    """Returns the image files in a folder and its subfolders, sorted; hidden ones are left out.

    Links to folders are followed; a folder that contains the link is not read again.

    Raises:
        DataError: for a folder that cannot be read.
    """
    found: list[Path] = []
    for place, subfolders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        inside = os.path.realpath(place)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and not f"{inside}/".startswith(f"{os.path.realpath(os.path.join(place, name))}/")
        ]
        found += [
            Path(place, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(file for file in found if file.is_file())


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def common_folder(files: Sequence[Path]) -> Path:
    """Returns the deepest folder that contains all files; there is at least one."""
    parents = [file.parent.parts for file in files]
    shared: list[str] = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return Path(*shared) if shared else Path()


def categories_of(names: Iterable[str], first_id: int = 1) -> list[dict[str, Any]]:
    """Returns COCO categories with ascending ids."""
    return [{"id": number, "name": name} for number, name in enumerate(names, first_id)]
