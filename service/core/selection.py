"""Selects detections by the options of a request, which are checked at admission."""

from __future__ import annotations

import difflib
import math
from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np

from model.data.input_files import one_spelling
from model.detections import Detections
from model.labels import NO_CLASS
from model.weights.info import ModelInfo
from service.errors import InvalidOptions, short_repr
from service.types import DetectOptions, Priority

PRIORITY_HEADER = "X-Request-Priority"  # in gRPC metadata in lower case
_LONGEST_NAME = 100  # characters that are compared to find a similar name
_MOST_NAMES = 20  # in an error message
_MAX_LABELS_TEXT = 16_384  # characters of all names
_MAX_COMMAS = 10  # in a class name that is one of several


def parse_priority(value: object) -> Priority:
    """Parses the value of the priority header; None stands for normal priority.

    Raises:
        InvalidOptions: for any other value than the name of a priority.
    """
    if value is None:
        return Priority.NORMAL
    try:
        return Priority[str(value).strip().upper()]
    except KeyError:
        known = " or ".join(priority.name.lower() for priority in Priority)
        raise InvalidOptions(
            f"{PRIORITY_HEADER} is {short_repr(value)}; it takes {known}"
        ) from None


@dataclass(frozen=True)
class Selection:
    """Options with the model's defaults filled in."""

    threshold: float
    max_detections: int
    class_ids: frozenset[int] | None  # None: all

    def apply(self, detections: Detections) -> Detections:
        """Returns the selected detections, best score first."""
        keep = detections.scores >= np.float32(self.threshold)
        if self.class_ids is None:  # sorted by score: the kept ones come first
            count = min(int(np.count_nonzero(keep)), self.max_detections)
            return detections if count == len(detections) else detections.keep(slice(count))
        keep &= np.isin(detections.labels, list(self.class_ids))
        return detections.keep(keep.nonzero()[0][: self.max_detections])


def resolve_options(options: DetectOptions, model: ModelInfo) -> Selection:
    """Checks the options of a request and fills in the model's defaults.

    Raises:
        InvalidOptions: for a threshold outside 0..1, a count outside 1..`max_detections` of the
            model, or an unknown label; the message names the known ones.
    """
    threshold = model.score_threshold if options.threshold is None else options.threshold
    if math.isnan(threshold) or not 0.0 <= threshold <= 1.0:
        raise InvalidOptions(f"threshold must be within 0..1, not {threshold}")
    most = model.config.max_detections
    count = most if options.max_detections is None else options.max_detections
    if not 1 <= count <= most:
        raise InvalidOptions(f"max_detections must be within 1..{most}, not {count}")
    return Selection(threshold, count, _class_ids(options.labels, model))


def check_labels_length(texts: Iterable[str]) -> None:
    """Must be called before labels are split at commas, which takes time and much memory.

    Raises:
        InvalidOptions: for more than 16,384 characters together.
    """
    length = sum(map(len, texts))
    if length > _MAX_LABELS_TEXT:
        raise InvalidOptions(f"labels has {length} characters; at most {_MAX_LABELS_TEXT} are read")


def _class_ids(labels: tuple[str, ...] | None, model: ModelInfo) -> frozenset[int] | None:
    if labels is None:
        return None
    check_labels_length(labels)
    known = {name: index for index, name in enumerate(model.labels) if name != NO_CLASS}
    names = [name for value in labels for name in split_labels(one_spelling(value), known)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidOptions(_unknown_label(unknown[0], list(known), model.name))
    return frozenset(known[name] for name in names)


def split_labels(text: str, known: Container[str]) -> list[str]:
    """Splits class names at commas, but not within a name that has commas itself.

    Args:
        text: one name, or several separated by commas.
        known: the model's class names.

    Returns:
        The names. Where several ways of splitting find known names, the longest name comes first;
        names that are not known are split at each comma.
    """
    if text in known:
        return [text]
    pieces, names, start = text.split(","), [], 0
    while start < len(pieces):
        last = min(len(pieces), start + _MAX_COMMAS + 1)
        joined = (",".join(pieces[start:end]).strip() for end in range(last, start, -1))
        name = next((each for each in joined if each in known), pieces[start].strip())
        names.append(name)
        start += name.count(",") + 1
    return names


def _unknown_label(name: str, known: list[str], model_name: str) -> str:
    name = name[:_LONGEST_NAME]  # comparing takes quadratic time
    names = ", ".join(known[:_MOST_NAMES])
    more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"the model {model_name} has no label {name!r}{hint}; its labels are {names}{more}"
