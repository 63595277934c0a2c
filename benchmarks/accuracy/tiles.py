"""Recall of small codes in large generated scenes, with and without the option tile.

    python -m benchmarks.accuracy.tiles --scenes 6 --json FILE
    python -m benchmarks.accuracy.tiles --tiles "" --code-sizes 0.05 0.2 --jpeg-decoding scaled

A scene has 3000 x 2000 pixels and codes whose longer side has 2 to 5 % of its width. The second
command measures, with larger codes, what `jpeg_decoding` changes; run it with `exact`, too. Each
scene is encoded as JPEG and sent through the service's own stages (decoders, batching, an engine
process).
Codes are found by the rules of `model.evaluation.photo_rules`, at the model's own threshold.
Prints Markdown; `--json FILE` writes all figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.data.annotations import GroundTruth
from model.evaluation.detections import ImageDetections
from model.evaluation.photo_rules import PhotoScores, judge_photos
from model.training.codes import optics
from model.training.codes.common import log_uniform
from model.training.codes.drafts import Draft, place_code
from model.training.codes.surfaces import background
from model.training.codes.symbols import CLASS_NAMES
from service.build import open_detector
from service.core.detector import Detector
from service.core.tiling.options import parse_tile
from service.settings import Settings
from service.types import DetectOptions

SEED = 86_420  # which training does not use
WIDTH, HEIGHT = 3000, 2000
CODES = 24  # that are placed in a scene, if there is room
SIZES = (0.02, 0.05)  # of a code's longer side, as a share of the width
QUALITY = 90  # of the JPEG files
STRENGTH = 0.2  # of light and camera: large photos are not worse than small ones


@dataclass(frozen=True)
class Column:
    """The scores of one value of the option."""

    tile: str  # empty: none
    recall: float
    recall_of_any_class: float  # a detection of another class finds a code, too
    hits: int
    codes: int
    surplus: int  # detections that find no code
    tiles: float  # mean of an image
    seconds: float  # mean of an image, one after the other


def main() -> None:
    """Generates scenes, detects in them and prints the recalls."""
    parser = argparse.ArgumentParser(description="Recall of small codes, with and without tiles.")
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--scenes", type=int, default=6, help="number of scenes")
    parser.add_argument("--tiles", default=",auto,640x480", help="values of tile; empty: none")
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--max-tiles", type=int, default=64)
    parser.add_argument(
        "--code-sizes", type=float, nargs=2, default=SIZES, help="smallest and largest"
    )
    parser.add_argument("--jpeg-decoding", choices=("exact", "scaled"), default="exact")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    files, truth = generate(options.scenes, tuple(options.code_sizes))
    settings = Settings(
        model=options.model,
        device="cpu",
        http_port=0,
        log_level="error",
        max_tiles=options.max_tiles,
        jpeg_decoding=options.jpeg_decoding,
    )
    columns = asyncio.run(
        measure(settings, files, truth, options.tiles.split(","), options.overlap)
    )
    print(as_markdown(columns))
    if options.json is not None:
        record = {
            "seed": SEED,
            "scenes": options.scenes,
            "size": [WIDTH, HEIGHT],
            "code_sizes": options.code_sizes,
            "jpeg_decoding": options.jpeg_decoding,
            "jpeg_quality": QUALITY,
            "overlap": options.overlap,
            "max_tiles": options.max_tiles,
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "columns": [vars(column) for column in columns],
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def generate(count: int, sizes: tuple[float, float] = SIZES) -> tuple[list[bytes], GroundTruth]:
    """Returns JPEG files and their codes; scene i depends only on the seed and i."""
    files: list[bytes] = []
    document: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, 1)],
    }
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        draft = Draft(background(rng, WIDTH, HEIGHT))
        for _ in range(CODES):
            place_code(rng, draft, log_uniform(rng, *sizes) * WIDTH)
        cell = min((mark.cell for mark in draft.marks), default=1.0)
        image = optics.camera(rng, optics.light(rng, draft.image), min(cell, 8.0), STRENGTH)
        flags = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), flags)
        files.append(data.tobytes())
        document["images"].append({"id": number + 1, "file_name": f"{number}.jpg"})
        for box, mark in zip(draft.boxes, draft.marks, strict=True):
            left, top, right, bottom = (float(side) for side in box)
            document["annotations"].append(
                {
                    "image_id": number + 1,
                    "category_id": mark.label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                }
            )
    return files, GroundTruth.from_coco(document)


async def measure(
    settings: Settings, files: list[bytes], truth: GroundTruth, tiles: list[str], overlap: float
) -> list[Column]:
    """Detects in all files with each value of the option."""
    columns = []
    async with open_detector(settings) as detector:
        ids = truth.category_ids(detector.model.labels)
        for tile in tiles:
            parsed = parse_tile(tile, overlap) if tile else None
            before = _tiles_of(detector)
            found = []
            for number, data in enumerate(files, start=1):
                started = time.monotonic()
                result = await detector.detect(
                    data, DetectOptions(tiles=parsed), request_id=f"{tile or 'whole'}-{number}"
                )
                kept = result.detections
                labels = np.array([ids[int(label)] for label in kept.labels], np.int64)
                milliseconds = (time.monotonic() - started) * 1000
                found.append(ImageDetections(number, replace(kept, labels=labels), milliseconds))
            scores = judge_photos(found, truth, detector.model.score_threshold)
            any_class = judge_photos(
                found, truth, detector.model.score_threshold, ignore_class=True
            )
            per_image = (_tiles_of(detector) - before) / len(files)
            columns.append(_column(tile, scores, any_class, per_image))
    return columns


def _tiles_of(detector: Detector) -> float:
    """All tiles so far."""
    return detector.metrics.registry.get_sample_value("lite_detr_tile_grid_size_sum") or 0.0


def _column(tile: str, scores: PhotoScores, any_class: PhotoScores, tiles: float) -> Column:
    hits = sum(part.hits for part in scores.per_class)
    codes = sum(part.codes for part in scores.per_class)
    seconds = scores.milliseconds_per_image / 1000
    found = sum(part.hits for part in any_class.per_class) / max(codes, 1)
    return Column(tile, hits / max(codes, 1), found, hits, codes, scores.surplus, tiles, seconds)


def as_markdown(columns: list[Column]) -> str:
    """The figures as a table."""
    rows = ["| tile | recall | of any class | codes found | surplus | tiles | s an image |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    rows += [
        f"| {each.tile or 'none'} | {each.recall:.3f} | {each.recall_of_any_class:.3f} "
        f"| {each.hits}/{each.codes} | {each.surplus} | {each.tiles:.0f} | {each.seconds:.2f} |"
        for each in columns
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
