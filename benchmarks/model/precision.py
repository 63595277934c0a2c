"""What each precision changes: on the reference cases, and on photos with the shipped weights.

    python -m benchmarks.model.precision [--output FOLDER]

float16 is emulated on the CPU, with the layers as a GPU has them: each stores float16 and sums in
float32 (`emulated`). "auto" is float16 on a GPU because of this measurement, and a test holds its
limits: with the shipped weights, on the sample photos, scores within 0.01 and boxes within 1 pixel
of 1280. Mirrored, turned and darkened copies show what is rarer: where two tokens have nearly the
same score, rounding of any kind swaps the queries that they become, and a detection may change by
more.

The reference cases need shared/reference next to the checkout; they compare with the official
float64 outputs. "memory" is the encoder's output (standard deviation about 1); "found" is the share
of the 300 official detections per image that have a match: same class, score within 0.02 and box
within 1 % of the image's size. Their weights are random, so scores lie close together and near ties
of the query selection swap: a trained model loses less. Writes precision.json and precision.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.report import RESULTS, ROOT, conditions, table, write_report
from model import build_detector
from model.config import ModelConfig
from model.detections import Detections
from model.geometry import padded_size, resized_size
from model.network import onednn
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.postprocess import select_detections
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model
from service.cpus import usable_cpus
from tests.support import reference_cases

MAX_SCORE_CHANGE, MAX_BOX_CHANGE = 0.01, 1.0  # of float16; boxes in pixels of the longest side
LONGEST_SIDE = 1280  # pixels that box changes refer to
SAMPLES = ROOT / "service" / "rest" / "static" / "samples"
_SHOWN_SCORE = 0.3  # detections with lower scores are not compared
_SCORE, _BOX = 0.02, 0.01  # tolerances of a match; boxes relative to the image's size
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Row:
    """Differences of one precision on one case."""

    case: str
    precision: str
    memory_largest: float
    memory_rms: float
    found: float  # share of the official detections


@dataclass(frozen=True)
class Change:
    """What a precision changes in the detections of one photo, compared with float32."""

    photo: str
    precision: str
    detections: int  # compared
    within: int  # of them, within the limits
    score: float  # largest change
    box_pixels: float  # largest change of a coordinate, if the longest side had 1280 pixels


@contextmanager
def emulated() -> Iterator[None]:
    """Layers compute as on a GPU: no oneDNN products, no Winograd convolutions."""
    with mock.patch.object(onednn, "is_available", lambda *_: False):
        yield


def network_of(detector: LiteDETR, precision: str) -> LiteDETR:
    """The inference form in a precision; float16 as in `emulated`, inside that context."""
    return prepare_for_inference(detector, _DTYPES[precision])


def measure(name: str, precision: str) -> Row:
    """Runs a reference case in a precision."""
    case = reference_cases.load_case(name)
    detector = build_detector(reference_cases.config_of(case.meta)).eval()
    detector.load_state_dict(reference_cases.weights_of(case.meta), strict=True)
    images, mask = reference_cases.batch_of(case.arrays, torch.float32)
    output = network_of(detector, precision)(images, mask)
    difference = output.memory.double() - torch.from_numpy(case.arrays["memory"]).double()
    sizes = [tuple(map(int, case.arrays[f"target_size_{i}"])) for i in range(len(images))]
    results = select_detections(output.pred_logits, output.pred_boxes, sizes, 300)  # type: ignore[arg-type]
    shares = [_found(case.arrays, i, results[i], sizes[i]) for i in range(len(images))]
    return Row(
        name,
        precision,
        float(difference.abs().max()),
        float(difference.square().mean().sqrt()),
        float(np.mean(shares)),
    )


def _found(arrays: dict[str, Any], index: int, ours: Any, size: tuple[int, ...]) -> float:
    """The share of an image's official detections that have a match in ours."""
    height, width = size
    limits = np.array([width, height, width, height], dtype=np.float32)
    official = zip(
        *(arrays[f"{field}_{index}"] for field in ("scores", "labels", "boxes")), strict=True
    )
    matched = []
    for score, label, box in official:
        near = (ours.labels == label) & (np.abs(ours.scores - score) <= _SCORE)
        distances = np.abs(ours.boxes_xyxy - np.clip(box, 0, limits)).max(-1)
        matched.append(bool((near & (distances <= _BOX * max(size))).any()))
    return float(np.mean(matched))


def samples() -> dict[str, Image.Image]:
    """The sample photos by name."""
    return {path.stem: Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))}


def copies(photos: Mapping[str, Image.Image]) -> dict[str, Image.Image]:
    """Changed copies of photos, by name."""
    made = {}
    for name, photo in photos.items():
        made[f"{name}, mirrored"] = ImageOps.mirror(photo)
        made[f"{name}, turned by 180°"] = photo.transpose(Image.Transpose.ROTATE_180)
        made[f"{name}, turned by 90°"] = photo.transpose(Image.Transpose.ROTATE_90)
        made[f"{name}, narrowed"] = photo.resize((photo.width * 3 // 4, photo.height))
        made[f"{name}, darkened"] = ImageEnhance.Brightness(photo).enhance(0.5)
    return made


def changes(precisions: Sequence[str], photos: Mapping[str, Image.Image]) -> list[Change]:
    """Runs the shipped weights on photos, in each precision and in float32.

    Args:
        precisions: names; "fp16" is emulated.
        photos: RGB, by name.
    """
    detector, info = load_detector(resolve_model("default"), "cpu")
    exact = Predictor(network_of(detector, "fp32"), info.config)
    expected = {name: _detect(exact, info.config, photo) for name, photo in photos.items()}
    rows = []
    for precision in precisions:
        with emulated():
            predictor = Predictor(network_of(detector, precision), info.config)
            for name, photo in photos.items():
                found = _detect(predictor, info.config, photo)
                rows.append(_change(name, precision, found, expected[name]))
    return rows


def _detect(predictor: Predictor, config: ModelConfig, image: Image.Image) -> Detections:
    """The detections of a photo, with boxes in pixels of `LONGEST_SIDE`."""
    height, width = resized_size(
        image.height, image.width, config.shortest_side, config.longest_side
    )
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels: npt.NDArray[np.uint8] = np.asarray(resized)
    scale = LONGEST_SIDE / max(height, width)
    size = (round(scale * height), round(scale * width))
    (found,) = predictor.predict([pixels], padded_size(height, width, config.bucket_stride), [size])
    return found


def _change(photo: str, precision: str, found: Detections, expected: Detections) -> Change:
    """Compares each detection with that of its class whose box is nearest."""
    shown = expected.scores >= _SHOWN_SCORE
    scores, boxes = [], []
    for score, label, box in zip(
        expected.scores[shown], expected.labels[shown], expected.boxes_xyxy[shown], strict=True
    ):
        distances = np.abs(found.boxes_xyxy - box).max(-1)
        distances[found.labels != label] = np.inf
        nearest = int(distances.argmin())
        scores.append(float(abs(found.scores[nearest] - score)))
        boxes.append(float(distances[nearest]))
    within = [
        score <= MAX_SCORE_CHANGE and box <= MAX_BOX_CHANGE
        for score, box in zip(scores, boxes, strict=True)
    ]
    largest = max(scores, default=0.0), max(boxes, default=0.0)
    return Change(photo, precision, len(within), sum(within), *largest)


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Compare precisions.")
    parser.add_argument("--output", type=Path, default=RESULTS / "model")
    output = parser.parse_args().output
    document = conditions()
    torch.set_num_threads(usable_cpus())
    rows = []
    with torch.inference_mode():
        changed = changes(("fp16", "bf16"), {**samples(), **copies(samples())})
        for name in reference_cases.case_names():
            rows += [measure(name, precision) for precision in ("fp32", "bf16")]
            with emulated():
                rows.append(measure(name, "fp16"))
    document["changes"] = [asdict(change) for change in changed]
    document["rows"] = [asdict(row) for row in rows]
    sections = ["## Shipped weights, compared with float32\n", _table_of_changes(changed)]
    sections += ["## Reference cases, compared with the official float64 outputs\n"]
    sections += ["The weights are random, so near ties are frequent.\n", _table_of_rows(rows)]
    write_report(output / "precision", "What each precision changes", document, sections)


def _table_of_changes(changed: Sequence[Change]) -> str:
    cells = [
        (
            one.photo,
            one.precision,
            str(one.detections),
            str(one.within),
            f"{one.score:.4f}",
            f"{one.box_pixels:.2f}",
        )
        for one in changed
        if one.detections
    ]
    columns = ("photo", "precision", "detections", "within limits", "score", "box, pixels")
    note = (
        f"Limits: {MAX_SCORE_CHANGE} of a score, {MAX_BOX_CHANGE} pixel if the longest side has "
        f"{LONGEST_SIDE}. Detections with a score of {_SHOWN_SCORE} and more.\n\n"
    )
    return note + table(columns, cells, 2)


def _table_of_rows(rows: Sequence[Row]) -> str:
    cells = [
        (
            row.case,
            row.precision,
            f"{row.memory_largest:.2g}",
            f"{row.memory_rms:.2g}",
            f"{row.found:.1%}",
        )
        for row in rows
    ]
    columns = ("case", "precision", "memory, largest", "memory, rms", "detections found")
    return table(columns, cells, 2)


if __name__ == "__main__":
    main()
