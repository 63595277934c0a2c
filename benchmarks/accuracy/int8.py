"""The accuracy of the default model with its backbone in int8, beside float32.

    python -m benchmarks.accuracy.int8 [--photos DIR] [--copies 4] [--scenes 300]

The ranges are those of `lite-detr weights calibrate` with 128 generated scenes of another seed than
the evaluated ones. A single AP says little: flipping the last bit of one in a hundred of an image's
numbers changes it by some tenths of a point, as near ties select other queries
(`benchmarks.model.drift`). So both precisions detect in several such copies of each set, the same
ones, and means are compared. Photos (see `benchmarks.accuracy.codes`) are used as they are. Writes
int8.json and int8.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.accuracy.synthetic_set import NUM_SCENES, synthetic_set
from benchmarks.report import RESULTS, conditions, table, write_report
from model.data.annotations import GroundTruth
from model.detections import Detections
from model.evaluation.batches import image_batches
from model.evaluation.evaluate import evaluate_coco, run_detector_on
from model.evaluation.photo_rules import judge_photos
from model.network.calibration import find_ranges
from model.network.inference import prepare_for_inference
from model.network.int8 import prepare_in_int8
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from model.weights.info import ModelInfo, default_cache_dir, resolve_model

_EDITIONS = (1, 2)  # of the generator
_CALIBRATION_SEED = 4242
_CALIBRATION_SCENES = 64  # of each edition
_NOISY_PIXELS = 0.01  # share of the numbers whose last bit is flipped


@dataclass(frozen=True)
class Row:
    """Scores of one precision on one set; means and standard deviations over the copies."""

    name: str
    precision: str
    ap: float
    ap_deviation: float
    ap50: float
    ap50_deviation: float


class _NoisyPredictor(Predictor):
    """Flips the last bit of some numbers of each image before it detects; see `start`."""

    def start(self, seed: int) -> None:
        """Begins a set; the same seed gives the same noise."""
        self._generator = np.random.default_rng(seed)

    def predict(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """As `Predictor.predict`."""
        return super().predict([self._noisy(image) for image in images], padded, original_sizes)

    def _noisy(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return image ^ (self._generator.random(image.shape) < _NOISY_PIXELS).astype(np.uint8)


def _calibration_images(predictor: Predictor, cache_dir: Path) -> Iterator[Tensor]:
    for edition in _EDITIONS:
        annotations, folder = synthetic_set(
            cache_dir, _CALIBRATION_SCENES, edition, _CALIBRATION_SEED
        )
        images = GroundTruth.read(annotations).images
        for [image] in image_batches(images, folder, predictor.config, 1):
            yield predictor.assemble([image.pixels], image.padded)[0]


def _score(
    edition: int,
    predictors: dict[str, _NoisyPredictor],
    info: ModelInfo,
    options: argparse.Namespace,
) -> list[Row]:
    """The scores of each precision on the generated scenes of an edition."""
    annotations, folder = synthetic_set(options.cache_dir, options.scenes, edition)
    truth = GroundTruth.read(annotations)
    rows = []
    for precision, predictor in predictors.items():
        scores = []
        for seed in range(options.copies):
            predictor.start(seed)
            found = run_detector_on(predictor, truth, folder, info.config, info.labels)
            scores.append(evaluate_coco(found, truth))
            print(edition, precision, seed, scores[-1].ap, scores[-1].ap50, file=sys.stderr)
        aps = [each.ap or 0.0 for each in scores]
        aps50 = [each.ap50 or 0.0 for each in scores]
        row = Row(
            f"{options.scenes} scenes, edition {edition}",
            precision,
            *(statistics.fmean(aps), statistics.pstdev(aps)),
            *(statistics.fmean(aps50), statistics.pstdev(aps50)),
        )
        rows.append(row)
    return rows


def _photo_rows(
    predictors: dict[str, Predictor], info: ModelInfo, photos: Path
) -> list[tuple[str, ...]]:
    truth = GroundTruth.read(photos / "photos.json")
    rows: list[tuple[str, ...]] = []
    for precision, predictor in predictors.items():
        found = run_detector_on(predictor, truth, photos / "photos", info.config, info.labels)
        scores = judge_photos(found, truth, info.score_threshold)
        matrix, linear = scores.matrix, scores.linear
        rows.append(
            (
                precision,
                f"{matrix.hits} of {matrix.codes}",
                f"{linear.hits} of {linear.codes}",
                str(scores.false_alarms),
            )
        )
    return rows


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Compare int8 with float32.")
    parser.add_argument("--photos", type=Path, help="folder with photos.json and photos/")
    parser.add_argument("--copies", type=int, default=4, help="of each set of scenes")
    parser.add_argument("--scenes", type=int, default=NUM_SCENES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir() / "evaluation")
    parser.add_argument("--output", type=Path, default=RESULTS / "default-model")
    options = parser.parse_args()
    document = conditions()
    torch.set_num_threads(options.threads)
    detector, info = load_detector(resolve_model("default"))
    float32 = prepare_for_inference(detector)
    images = _calibration_images(Predictor(float32, info.config), options.cache_dir)
    with torch.inference_mode():
        int8 = prepare_in_int8(detector, find_ranges(detector.body, images))
    networks = {"float32": float32, "int8": int8}
    noisy = {name: _NoisyPredictor(network, info.config) for name, network in networks.items()}
    rows = [row for edition in _EDITIONS for row in _score(edition, noisy, info, options)]
    vnni = torch.cpu._is_vnni_supported()
    sections = [
        f"{info.name} {info.version}; int8 weights have {8 if vnni else 7} bits on this processor. "
        f"Means (and standard deviations) of {options.copies} copies with different noise.\n",
        table(
            ("set", "precision", "AP", "AP50"),
            [
                (
                    *(row.name, row.precision),
                    f"{row.ap:.4f} ({row.ap_deviation:.4f})",
                    f"{row.ap50:.4f} ({row.ap50_deviation:.4f})",
                )
                for row in rows
            ],
            texts=2,
        ),
    ]
    document |= {"version": info.version, "weight_bits": 8 if vnni else 7}
    document |= {"copies": options.copies, "rows": [asdict(row) for row in rows]}
    if options.photos is not None:
        plain = {name: Predictor(network, info.config) for name, network in networks.items()}
        found = _photo_rows(plain, info, options.photos)
        columns = ("photos", "matrix codes", "linear codes", "false positives")
        sections += ["\nReal photos, without noise.\n", table(columns, found)]
        document["photos"] = found
    write_report(options.output / "int8", "The default model in int8", document, sections)


if __name__ == "__main__":
    main()
