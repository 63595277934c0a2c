"""Annotated data sets of any known format -> `DataSet`: checked ground truth and its image folder.

Training, evaluation and `lite-detr data check` open data here. The format is recognised by the
files; each is read into a COCO document, which the same checks then judge.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.data.annotations import GroundTruth, check_images_and_boxes
from model.data.document_checks import check_document, read_document
from model.data.errors import DataError
from model.data.findings import Findings
from model.data.formats.base import DataFormat, RawDataSet
from model.data.formats.coco import CocoFormat
from model.data.formats.data_yaml import unused_yaml
from model.data.formats.voc import VocFormat
from model.data.formats.yolo import YoloFormat
from model.data.image_checks import Size

Report = Callable[[str], None]

FORMATS: tuple[DataFormat, ...] = (YoloFormat(), CocoFormat(), VocFormat())


@dataclass(frozen=True)
class DataSet:
    """One split of a data set.

    Attributes:
        truth: images, boxes and categories.
        folder: that the file names of the images are relative to.
        subject: the file or folder of the annotations, for messages.
        sizes: width and height of each readable image in pixels, by image id.
        findings: of the checks.
    """

    truth: GroundTruth
    folder: Path
    subject: Path
    sizes: Mapping[int, Size]
    findings: Findings


def open_data_set(
    path: Path, split: str = "train", report: Report | None = None, *, limit: int | None = None
) -> DataSet | None:
    """Opens a split of a data set in a file or folder.

    Args:
        path: a COCO JSON file, a `data.yaml`, or a folder in one of the `FORMATS`.
        split: "train", "val" or "test".
        report: called with a report of oddities, if there are any.
        limit: only the first image files are checked; None: all.

    Returns:
        The data set; None if it has no such split.

    Raises:
        DataError: for data in no known format, or with errors.
    """
    findings = Findings()
    raw = read_split(path, split, findings)
    return None if raw is None else _checked(raw, findings, report, limit)


def open_coco(
    annotations: Path, images: Path, report: Report | None = None, *, limit: int | None = None
) -> DataSet:
    """Opens a COCO JSON file whose image folder is known; see `open_data_set`.

    Raises:
        DataError: for data with errors.
    """
    raw = RawDataSet(read_document(annotations), images, annotations)
    return _checked(raw, Findings(), report, limit)


def read_split(path: Path, split: str, findings: Findings) -> RawDataSet | None:
    """Reads a split without the checks of its document; see `open_data_set`."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    for candidate in FORMATS:
        if candidate.recognises(path):
            return candidate.read(path, split, findings)
    for folder in (path, *path.glob("*")):
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            raise DataError(f"{folder} cannot be read: Permission denied")
    layouts = "; ".join(f"{each.name} ({each.layout})" for each in FORMATS)
    reason = unused_yaml(path)
    raise DataError(
        f"{path}: {reason + '; ' * bool(reason)}no data set of a known format: {layouts}"
    )


def check_split(raw: RawDataSet, findings: Findings, limit: int | None = None) -> dict[int, Size]:
    """Checks a document and its image files; returns the sizes of the readable images.

    Raises:
        DataError: if there is no image at all.
    """
    check_document(raw.document, findings)
    return check_images_and_boxes(raw.document, limit, raw.folder, findings)


def _checked(
    raw: RawDataSet, findings: Findings, report: Report | None, limit: int | None
) -> DataSet:
    sizes = check_split(raw, findings, limit)
    if findings.has_errors:
        raise DataError(findings.report(raw.subject))
    if findings.has_oddities and report is not None:
        report(findings.report(raw.subject))
    return DataSet(GroundTruth.from_coco(raw.document), raw.folder, raw.subject, sizes, findings)
