"""Finds annotations and images in a folder of COCO, as its archives unpack (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.data.errors import DataError

DEFAULT_SPLIT: Final = "val2017"
_LAYOUT = (
    "DIR/annotations/instances_{split}.json and DIR/{split}/ (or DIR/images/{split}/), "
    "as COCO's archives unpack"
)


@dataclass(frozen=True)
class CocoFiles:
    """The annotations of one split, and the folder of its images."""

    annotations: Path
    images: Path


def find_coco_files(folder: Path, split: str = DEFAULT_SPLIT) -> CocoFiles:
    """Finds the files of one split.

    Args:
        folder: of COCO: with `annotations/instances_SPLIT.json`, and `SPLIT/` or `images/SPLIT/`.
        split: such as val2017 or train2017.

    Raises:
        DataError: naming what is missing and where it was looked for.
    """
    if not split or Path(split).name != split or split in (".", ".."):
        raise DataError(f"{split!r} is no split of COCO; they are names such as {DEFAULT_SPLIT}")
    layout = _LAYOUT.format(split=split)
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {kind}; expected is {layout}")
    annotations = folder / "annotations" / f"instances_{split}.json"
    choices = (folder / split, folder / "images" / split)
    images = next((choice for choice in choices if choice.is_dir()), None)
    missing = []
    if not annotations.is_file():
        missing.append(f"the annotations, {annotations}")
    if images is None:
        missing.append(f"the folder of images, {choices[0]} or {choices[1]}")
    if missing or images is None:
        raise DataError(
            f"{folder} lacks {' and '.join(missing)}; expected is {layout}{_hint(folder, split)}"
        )
    return CocoFiles(annotations, images)


def _hint(folder: Path, split: str) -> str:
    """Returns what may be meant: the folder above, an archive that is not unpacked, a split."""
    if (
        folder.name in ("annotations", "images", split)
        and (folder.parent / "annotations" / f"instances_{split}.json").is_file()
    ):
        return f". Is {folder.parent} meant?"
    archives = [
        name
        for name in (f"{split}.zip", f"annotations_trainval{split[-4:]}.zip")
        if (folder / name).is_file()
    ]
    if archives:
        return f". {' and '.join(archives)} must be unpacked first"
    present = sorted(
        path.stem.removeprefix("instances_")
        for path in (folder / "annotations").glob("instances_*.json")
    )
    if present and split not in present:
        return f". Its annotations are of {', '.join(present[:4])} (--split)"
    return ""
