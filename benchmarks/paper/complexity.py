"""GFLOPs and parameters of every row of the paper's tables, next to the published figures.

    python -m benchmarks.paper.complexity

Counted by `model.network.complexity` at the size that the official benchmark takes for the first
100 images of COCO val2017. Needs no weights and computes no network.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.report import RESULTS, conditions, write_report
from model.config import VARIANTS
from model.network.complexity import COCO_SIZE, Complexity, count


class Published(NamedTuple):
    """Figures of the paper, tables 3 and 4: GFLOPs, and parameters in millions."""

    total: float
    encoder: float
    parameters: float


PUBLISHED = {
    "deformable-detr-r50": Published(177, 90, 40),
    "lite-deformable-detr-r50-h2l2-2p1x3": Published(108, 23, 41),
    "lite-deformable-detr-r50-h3l1-6p1x1": Published(115, 30, 41),
    "lite-deformable-detr-r50-h3l1-3p1x2": Published(119, 35, 41),
    "lite-deformable-detr-r50-h3l1-2p1x3": Published(123, 39, 41),
    "dino-r50-4scale": Published(235, 137, 47),
    "lite-dino-r50-h2l2-2p1x3": Published(130, 30, 47),
    "lite-dino-r50-h3l1-6p1x1": Published(141, 41, 47),
    "lite-dino-r50-h3l1-2p1x3": Published(151, 53, 47),
    "dino-swint-4scale": Published(243, 137, 47),
    "lite-dino-swint-h2l2-2p1x3": Published(138, 30, 47),
    "lite-dino-swint-h3l1-6p1x1": Published(149, 41, 47),
    "lite-dino-swint-h3l1-2p1x3": Published(159, 53, 47),
    "h-detr-r50": Published(226, 137, 47),
    "lite-h-detr-r50-h3l1-2p1x3": Published(142, 53, 47),
    "h-detr-swint": Published(234, 137, 47),
    "lite-h-detr-swint-h2l2-2p1x3": Published(131, 30, 47),
    "lite-h-detr-swint-h3l1-6p1x1": Published(142, 41, 47),
    "lite-h-detr-swint-h3l1-2p1x3": Published(152, 53, 47),
}
_NOTES = """
The published figures are means over the first 100 images of COCO val2017, whose sizes are not part
of this repository. This count is of one image of the size that the official benchmark takes for
their mean. `differs` compares the totals. `fewer in the head` compares with the baseline of the
same detector and backbone: the head is all but the backbone. GFLOPs are not time.

Where a total or an encoder differs by more than 5 %:

- **Encoders of the Lite rows** (and of the two-stage baseline, which is lower): this count has the
  value projection of all tokens in each layer and the bilinear samples, four products each. Without
  the samples the encoders are 1 to 2 GFLOPs lower. What the paper left out of its encoder column is
  not published; the totals, which need no such division, agree within 5 % for every row of
  Lite-DINO and Lite-H-DETR and for all baselines.
- **Lite-Deformable DETR**: its code was not released. The small FFN is taken to be 256 wide, as in
  Lite-DINO. Half of that would fit H2L2 better, and the H3L1 rows worse.

The paper's claim is 60 % fewer GFLOPs in the detection head. In this count H2L2-(2+1)x3 has 55 to
70 % fewer, H3L1-(6+1)x1 52 to 61 %, H3L1-(3+1)x2 48 %, and H3L1-(2+1)x3 43 to 55 %.
"""


def row(name: str, found: Complexity, baseline: Complexity) -> dict[str, object]:
    """One row of the results."""
    published = PUBLISHED[name]
    numbers = {
        **{part: round(value, 2) for part, value in found.parts.items()},
        "head": round(found.head, 2),
        "total": round(found.total, 2),
    }
    return {
        "name": name,
        "gflops": numbers,
        "parameters_millions": round(found.parameters, 2),
        "published": published._asdict(),
        "total_differs_percent": round(100 * (found.total / published.total - 1), 1),
        "encoder_differs_percent": round(100 * (found.parts["encoder"] / published.encoder - 1), 1),
        "fewer_in_the_head_percent": round(100 * (1 - found.head / baseline.head), 1),
        "fewer_in_the_encoder_percent": round(
            100 * (1 - found.parts["encoder"] / baseline.parts["encoder"]), 1
        ),
    }


def baseline_of(name: str) -> str:
    """The baseline of a row: the same detector and backbone, all tokens in every layer."""
    detector = name.removeprefix("lite-")
    for candidate in PUBLISHED:
        if not candidate.startswith("lite-") and detector.startswith(
            candidate.removesuffix("-4scale")
        ):
            return candidate
    raise ValueError(f"{name} has no baseline")


def main() -> None:
    """Counts all rows and writes the report."""
    found = {name: count(VARIANTS[name], [COCO_SIZE]) for name in PUBLISHED}
    rows = [row(name, found[name], found[baseline_of(name)]) for name in PUBLISHED]
    table = [
        "| model | GFLOPs | published | differs | backbone | encoder | published | head | "
        "fewer in the head | parameters | published |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in rows:
        name = str(each["name"])
        one, published = found[name], PUBLISHED[name]
        fewer = "" if baseline_of(name) == name else f"{each['fewer_in_the_head_percent']} %"
        table.append(
            f"| {name} | {one.total:.1f} | {published.total} | {each['total_differs_percent']:+} % "
            f"| {one.parts['backbone']:.1f} | {one.parts['encoder']:.1f} | {published.encoder} "
            f"| {one.head:.1f} | {fewer} | {one.parameters:.1f}M | {published.parameters}M |"
        )
    document = {**conditions(), "size": COCO_SIZE, "rows": rows}
    sections = ["\n".join(table), _NOTES.strip()]
    write_report(RESULTS / "paper" / "complexity", "Complexity of the family", document, sections)


if __name__ == "__main__":
    main()
