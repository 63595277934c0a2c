"""`lite-detr detect --annotations`: image and category ids of a user's COCO data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.data.annotations import GroundTruth, ImageAnnotations
from model.data.errors import DataError
from model.data.input_files import one_spelling
from model.labels import named_classes
from service.cli.inputs import STDIN, ImageFile
from service.core.formats import CocoDataSet


@dataclass(frozen=True)
class MatchedFiles:
    """The input files that a data set lists, each with its image."""

    files: tuple[ImageFile, ...]
    images: tuple[ImageAnnotations, ...]
    categories: Mapping[int, str]

    def data_set(self, labels: Sequence[str], report: Callable[[str], None]) -> CocoDataSet:
        """Returns the ids for the results of a model.

        Args:
            labels: the model's class names; they are looked up among the categories.
            report: called with a line about classes that are no categories, if there are any.

        Raises:
            DataError: if the data set has none of these classes.
        """
        by_name = {name: key for key, name in self.categories.items()}
        ids = {number: by_name[name] for number, name in enumerate(labels) if name in by_name}
        if not ids:
            raise DataError(
                f"the annotations have none of the model's classes, such as {labels[0]!r}; their "
                f"categories are {', '.join(list(by_name)[:6])}"
            )
        left_out = [name for _, name in named_classes(labels) if name not in by_name]
        if left_out:
            report(
                f"the annotations have no category for {len(left_out)} of the model's classes, "
                f"whose detections are left out, the first: {left_out[0]}"
            )
        return CocoDataSet(
            image_ids=[image.image_id for image in self.images],
            file_names=[image.file_name for image in self.images],
            categories=self.categories,
            category_by_class=ids,
        )


def match_files(
    annotations: Path, files: Sequence[ImageFile], report: Callable[[str], None]
) -> MatchedFiles:
    """Finds the image of each input file: the one whose `file_name` its path ends with.

    Args:
        annotations: COCO-format JSON.
        files: the inputs; those that it does not list are left out.
        report: called with lines about files and images without a counterpart.

    Raises:
        DataError: for annotations that cannot be used, a file that does not exist or cannot be
            looked up, two files that are the same image, or no file that is listed.
    """
    truth = GroundTruth.read(annotations)
    by_name = {_normal(image.file_name): image for image in truth.images}
    found: dict[int, tuple[ImageFile, ImageAnnotations]] = {}
    unlisted = []
    for file in files:
        if (reason := _why_missing(file)) is not None:
            raise DataError(f"{file.name}: {reason}")
        image = _find(file, by_name)
        if image is None:
            unlisted.append(file.name)
        elif image.image_id in found:
            other = found[image.image_id][0].name
            raise DataError(
                f"{annotations}: {other} and {file.name} are both {image.file_name}, image "
                f"{image.image_id}"
            )
        else:
            found[image.image_id] = (file, image)
    if not found:
        raise DataError(f"{annotations} lists none of the files, the first: {unlisted[0]}")
    if unlisted:
        report(
            f"{annotations} does not list {len(unlisted)} of {len(files)} files, which are left "
            f"out, the first: {unlisted[0]}"
        )
    if absent := [image for image in truth.images if image.image_id not in found]:
        report(
            f"{len(absent)} of {len(truth.images)} images of {annotations} are not among the "
            f"files, the first: {absent[0].file_name}"
        )
    pairs = found.values()
    return MatchedFiles(
        tuple(file for file, _ in pairs), tuple(image for _, image in pairs), truth.categories
    )


def _why_missing(file: ImageFile) -> str | None:
    """Returns why there is no file, None if there is one."""
    if file.missing is not None or file.name == STDIN:
        return file.missing
    try:
        os.stat(Path(file.name))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _find(file: ImageFile, by_name: Mapping[str, ImageAnnotations]) -> ImageAnnotations | None:
    """Returns the image with the longest file name that the file's path ends with."""
    if file.name == STDIN:
        return None
    whole = Path(one_spelling(file.name)).absolute()
    parts = whole.parts
    endings = (str(whole), *("/".join(parts[start:]) for start in range(1, len(parts))))
    return next((by_name[ending] for ending in endings if ending in by_name), None)


def _normal(file_name: str) -> str:
    """Returns a file name with slashes, without "./" at its start, in one form of Unicode."""
    return one_spelling(str(Path(file_name.replace("\\", "/"))))
