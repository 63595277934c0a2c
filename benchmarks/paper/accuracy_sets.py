"""The two image sets of the accuracy study, as folders of images with COCO-format annotations.

`FOLDER/sets/codes` has generated codes, from frozen seeds. `FOLDER/sets/bccd` has micrographs of
blood cells, resized to the detectors' input. Both have `train` and `val`. `FOLDER/sets.json`
appears when they are complete; it counts their images and boxes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from model.data.annotations import GroundTruth
from model.training.codes import cache

_CODE_SEEDS = {"train": 2303_07335, "val": 7335_2303}  # frozen: other seeds are another study
_LONGEST_SIDE = 256  # pixels
_INDEX = "annotations.json"
SETS_FILE = "sets.json"


@dataclass(frozen=True)
class ImageSet:
    """One set of images.

    Attributes:
        name: of the set.
        folder: with `train` and `val`.
    """

    name: str
    folder: Path

    def images(self, part: str) -> Path:
        """The folder of the images of "train" or "val"."""
        return self.folder / part

    def annotations(self, part: str) -> Path:
        """The COCO-format JSON of "train" or "val"."""
        return self.folder / part / _INDEX


def prepare(folder: Path, scenes: dict[str, int], photos: Path, workers: int) -> None:
    """Writes both sets; a second call continues.

    Args:
        folder: of the study.
        scenes: generated images of "train" and "val".
        photos: folder of the photographs; see `shrink`.
        workers: processes to use.

    Raises:
        DataError: for photographs that cannot be used.
    """
    codes, cells = image_set(folder, "codes"), image_set(folder, "bccd")
    shrink(cells, photos)
    render_codes(codes, scenes, workers)
    described = {each.name: describe(each) for each in (codes, cells)}
    write_atomically(folder / SETS_FILE, json.dumps(described, indent=2))


def image_set(folder: Path, name: str) -> ImageSet:
    """A set of the study in that folder."""
    return ImageSet(name, folder / "sets" / name)


def render_codes(target: ImageSet, counts: dict[str, int], workers: int) -> None:
    """Renders the generated codes; a second call renders what is missing.

    Args:
        target: the set to write.
        counts: scenes of "train" and "val".
        workers: processes to use.
    """
    for part, count in counts.items():
        folder = target.images(part)
        cache.build(folder, count, _CODE_SEEDS[part], workers, _LONGEST_SIDE)


def shrink(target: ImageSet, photos: Path) -> None:
    """Resizes annotated photographs, so that areas are those that the detectors see.

    Args:
        target: the set to write.
        photos: folder with `train`, `val` and a COCO-format JSON file of each.

    Raises:
        DataError: for annotations or images that cannot be used.
    """
    for part in ("train", "val"):
        if target.annotations(part).is_file():
            continue
        truth = GroundTruth.read(photos / f"{part}.json", images=photos / part)
        target.images(part).mkdir(parents=True, exist_ok=True)
        document = truth.to_coco()
        scales = {}
        for entry in document["images"]:
            source = photos / part / entry["file_name"]
            entry["file_name"] = f"{source.stem}.png"
            scales[entry["id"]] = _shrink_file(source, target.images(part) / entry["file_name"])
        for annotation in document["annotations"]:
            _scale(annotation, scales[annotation["image_id"]])
        write_atomically(target.annotations(part), json.dumps(document))


def _shrink_file(source: Path, target: Path) -> float:
    """Writes a copy whose longest side is `_LONGEST_SIDE`; returns its scale."""
    with Image.open(source) as image:
        scale = _LONGEST_SIDE / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image.convert("RGB").resize(size, Image.Resampling.BOX).save(target)
    return scale


def _scale(annotation: dict[str, Any], scale: float) -> None:
    annotation["bbox"] = [value * scale for value in annotation["bbox"]]
    annotation["area"] *= scale**2


def describe(target: ImageSet) -> dict[str, int]:
    """Images of both parts, and boxes of the validation part by COCO's areas."""
    train, val = (GroundTruth.read(target.annotations(part)) for part in ("train", "val"))
    areas = [box.area for image in val.images for box in image.boxes]
    small = sum(area < 32**2 for area in areas)
    large = sum(area >= 96**2 for area in areas)
    return {
        "train_images": len(train.images),
        "val_images": len(val.images),
        "val_boxes": len(areas),
        "small": small,
        "medium": len(areas) - small - large,
        "large": large,
    }


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
