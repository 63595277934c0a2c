"""What training requires of the splits of a data set: boxes, and the same classes."""

from __future__ import annotations

from model.data.annotations import AnnotatedBox, GroundTruth
from model.data.data_sets import DataSet
from model.data.errors import DataError
from model.data.image_checks import Size

_NAMES_SHOWN = 6


def check_boxes_of_split(data: DataSet, purpose: str) -> None:
    """Refuses a split without a box that can be learned or found.

    Args:
        data: the split.
        purpose: of its boxes, such as "learn from", for the message.

    Raises:
        DataError: if it has none.
    """
    for image in data.truth.images:
        size = data.sizes.get(image.image_id)
        if any(_is_usable(box, size) for box in image.boxes):
            return
    raise DataError(
        f"{data.subject} has no box to {purpose} (crowds, and boxes without an area or outside "
        "their image, are left out)"
    )


def check_classes_of_split(data: DataSet, classes: GroundTruth, trained: object) -> None:
    """Refuses a split with boxes of classes that the training images do not have.

    Args:
        data: the split.
        classes: of the training images.
        trained: file or folder of the training images, for the message.

    Raises:
        DataError: naming these classes.
    """
    known = set(classes.categories.values())
    names = data.truth.categories
    absent = [names[key] for key in sorted(data.truth.counts()) if names[key] not in known]
    if absent:
        more = ", ..." if len(absent) > _NAMES_SHOWN else ""
        raise DataError(
            f"{data.subject} has boxes of classes that {trained} does not have: "
            f"{', '.join(absent[:_NAMES_SHOWN])}{more}; add images of them to the training "
            "images, or remove these boxes"
        )


def _is_usable(box: AnnotatedBox, size: Size | None) -> bool:
    """Whether a box has an area on its image, whose size may be unknown."""
    left, top, right, bottom = box.xyxy
    if box.crowd or right <= left or bottom <= top:
        return False
    return size is None or (left < size[0] and top < size[1] and right > 0 and bottom > 0)
