"""COCO scores, as a table and as JSON; `model.evaluation.evaluate` computes them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

# Characters that end a cell, or hide or format what follows. Others stay as they are, as the tables
# are printed in terminals, too.
_MARKDOWN = re.compile(r"[\\|`*<]")


@dataclass(frozen=True)
class ClassScores:
    """COCO scores of one class, 0..1; None if no box of it is annotated."""

    name: str
    num_images: int  # with a box of it
    num_boxes: int
    ap: float | None
    ap50: float | None
    ar_100: float | None


@dataclass(frozen=True)
class Scores:
    """COCO scores, 0..1; None if nothing of that kind is annotated.

    `ap` is the mean over IoU 0.50:0.95 and classes; areas are COCO's (small below 32 x 32 pixels
    of the image, large from 96 x 96); `ar_N` is the recall with at most N detections of a class
    per image.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    per_class: tuple[ClassScores, ...]  # those with annotated boxes, in category order
    num_images: int
    num_boxes: int
    milliseconds_per_image: float  # mean, from decoded image to detections
    unreadable_images: tuple[str, ...] = ()  # reasons; these images count as without detections
    is_val2017: bool = False  # whether all 5,000 images of COCO val2017 were scored

    def to_json(self, **more: Any) -> str:
        """Returns the scores as one JSON object, with these field names, and `more` after them."""
        return json.dumps({**asdict(self), **more}, indent=2)


def table_cell(text: str) -> str:
    """Returns text, such as the name of a class, as a cell of a Markdown table that shows it."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.splitlines()))


def format_scores(scores: Scores) -> str:
    """Formats the scores as a Markdown table."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def row(name: str, of: Scores | ClassScores) -> str:
        counts = f"{of.num_images} | {of.num_boxes}"
        return f"| {name} | {counts} | {cell(of.ap)} | {cell(of.ap50)} | {cell(of.ar_100)} |"

    rows = ["| class | images | boxes | AP | AP50 | AR@100 |", "|---|---:|---:|---:|---:|---:|"]
    rows += [row(table_cell(each.name), each) for each in scores.per_class]
    rows.append(row("**all**", scores))
    more = (
        f"AP75 {cell(scores.ap75)}; AP small {cell(scores.ap_small)}, medium "
        f"{cell(scores.ap_medium)}, large {cell(scores.ap_large)}; AR@1 {cell(scores.ar_1)}, "
        f"AR@10 {cell(scores.ar_10)}, AR@100 {cell(scores.ar_100)}",
        f"{scores.num_images} images, {scores.milliseconds_per_image:.0f} ms an image",
    )
    return "\n".join([*rows, "", *more])
