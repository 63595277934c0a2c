"""Renders a training set to disk: `python -m model.training.codes.cache --out DIR ...`.

DIR gets one JPEG per scene, `scenes.jsonl` (one line per finished image, so that a training run may
read it meanwhile) and, at the end, `annotations.json` in COCO format. Scene i depends only on the
edition of the generator, the seed and i. A second call with the same DIR, edition and seed resumes.
A folder with other files, or with another set, is refused unless `--overwrite` is given.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.data.errors import OutputError
from model.training.codes.editions import EDITIONS, generate_scene
from model.training.codes.symbols import CLASS_NAMES

_QUALITY = (60, 95)
_REPORT_EVERY = 500


def render(index: int, out: Path, seed: int, max_side: int, edition: int = 1) -> dict[str, Any]:
    """Renders and writes one scene.

    Args:
        index: Number of the scene.
        out: Folder for the JPEG file.
        seed: Seed of the set.
        max_side: Longest side in pixels.
        edition: Of the generator.

    Returns:
        Its record: file, width, height, boxes (xyxy pixels) and labels.
    """
    rng = np.random.default_rng([seed, index])
    scene = generate_scene(rng, max_side=max_side, edition=edition)
    quality = int(rng.integers(_QUALITY[0], _QUALITY[1] + 1))
    name = f"{index:07d}.jpg"
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(scene.image[..., ::-1]), flags)
    part = out / f".{name}.part"
    part.write_bytes(data.tobytes())
    os.replace(part, out / name)
    height, width = scene.image.shape[:2]
    return {
        "file": name,
        "width": width,
        "height": height,
        "boxes": [[round(float(v), 2) for v in box] for box in scene.boxes_xyxy],
        "labels": [int(v) for v in scene.labels],
    }


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads the complete lines of a scenes.jsonl, without an unfinished last line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def write_coco(records: list[dict[str, Any]], path: Path) -> None:
    """Writes records as a COCO annotation file with category ids 1.. in class order."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(sorted(records, key=lambda r: str(r["file"])), 1):
        size = {"width": record["width"], "height": record["height"]}
        images.append({"id": number, "file_name": record["file"], **size})
        for (left, top, right, bottom), label in zip(
            record["boxes"], record["labels"], strict=True
        ):
            wide, high = round(right - left, 2), round(bottom - top, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [left, top, wide, high],
                    "area": round(wide * high, 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, 1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document), encoding="utf-8")


def _results(task: Any, todo: list[int], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from map(task, todo)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(task, todo, chunksize=8)


def prepare_folder(
    out: Path, seed: int, max_side: int, *, edition: int = 1, overwrite: bool
) -> None:
    """Creates the folder of a set and writes down which set it is.

    Args:
        out: Folder; created if missing.
        seed: Seed of the set.
        max_side: Longest side in pixels.
        edition: Of the generator.
        overwrite: Starts anew where the folder has other files or another set.

    Raises:
        OutputError: If it has other files or another set, which would be replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    index, identity = out / "scenes.jsonl", out / "cache.json"
    expected = {"seed": seed, "max_side": max_side}
    if edition != 1:  # files of older versions have no edition
        expected["edition"] = edition
    if identity.exists():  # absent in sets of older versions
        present = json.loads(identity.read_text(encoding="utf-8"))
        foreign = None if present == expected else f"a set of {present}, not of {expected}"
    elif index.exists():
        foreign = None
    else:
        first = next(out.iterdir(), None)
        foreign = None if first is None else f"other files, such as {first.name}"
    if foreign is not None:
        if not overwrite:
            raise OutputError(f"{out} has {foreign}: choose another folder, or add --overwrite")
        index.unlink(missing_ok=True)
    identity.write_text(json.dumps(expected), encoding="utf-8")


def build(  # noqa: PLR0913 - options, by keyword
    out: Path,
    count: int,
    seed: int,
    workers: int = 1,
    max_side: int = 384,
    *,
    edition: int = 1,
    overwrite: bool = False,
) -> int:
    """Renders the missing scenes of a set of `count`.

    Args:
        out: Folder; created if missing.
        count: Number of scenes in all.
        seed: Seed of the set.
        workers: Processes to use.
        max_side: Longest side in pixels.
        edition: Of the generator.
        overwrite: Starts anew where the folder has other files or another set.

    Returns:
        The number of scenes rendered by this call.

    Raises:
        OSError: If the folder cannot be written.
        OutputError: If it has other files or another set.
    """
    prepare_folder(out, seed, max_side, edition=edition, overwrite=overwrite)
    index = out / "scenes.jsonl"
    records = read_records(index)
    index.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    done = {str(record["file"]) for record in records}
    todo = [i for i in range(count) if f"{i:07d}.jpg" not in done]
    task = functools.partial(render, out=out, seed=seed, max_side=max_side, edition=edition)
    start = time.monotonic()
    with index.open("a", encoding="utf-8") as lines:
        for number, record in enumerate(_results(task, todo, workers), 1):
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            records.append(record)
            if number % _REPORT_EVERY == 0 or number == len(todo):
                pace = number / max(time.monotonic() - start, 1e-6)
                print(f"{number}/{len(todo)} scenes, {pace:.1f} per second", file=sys.stderr)
    write_coco(records, out / "annotations.json")
    return len(todo)


def main() -> None:
    """Reads the command line and renders the set."""
    parser = argparse.ArgumentParser(description="Render a training set of code images.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, required=True, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-side", type=int, default=384, help="longest side in pixels")
    parser.add_argument(
        "--edition", type=int, default=1, choices=sorted(EDITIONS), help="of the generator"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace other files in the folder"
    )
    options = parser.parse_args()
    try:
        build(
            options.out,
            options.count,
            options.seed,
            options.workers,
            options.max_side,
            edition=options.edition,
            overwrite=options.overwrite,
        )
    except OutputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
