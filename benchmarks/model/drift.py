"""What a precision changes in the detections of the shipped weights, and why.

The network runs in each precision and in float32. Rounding alone changes a score by thousandths.
But where two tokens have nearly the same score it swaps their ranks, and with them what the decoder
has learned for a query of each rank; then a score may change by a tenth, a box by many pixels. So
each precision runs twice: on its own, and with the queries that float32 selected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from benchmarks.accuracy.synthetic_set import synthetic_set
from benchmarks.report import ROOT
from model.config import ModelConfig
from model.detections import Detections
from model.geometry import padded_size, resized_size
from model.network import onednn
from model.network.convolution import FoldedConvolution
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.network.linear import PackedLinear
from model.network.transformer import Transformer
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model

MAX_SCORE_CHANGE, MAX_BOX_CHANGE = 0.01, 1.0  # boxes in pixels of the longest side
LONGEST_SIDE = 1280  # pixels that box changes refer to
NUM_SCENES = 60
SAMPLES = ROOT / "service" / "rest" / "static" / "samples"
_SHOWN_SCORE = 0.3  # detections with lower scores are not compared
_NOISY_PIXELS = 0.01  # share of the pixels whose last bit `with_noise` flips
_TF32_DROPPED_BITS = 13  # of the 23 of float32
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

Images = Mapping[str, Image.Image]


@dataclass(frozen=True)
class Change:
    """What a precision changes in the detections of one image, compared with float32."""

    image: str
    precision: str
    same_queries: bool  # with the queries that float32 selected
    detections: int  # compared
    within: int  # of them, within the limits
    score: float  # largest change
    box_pixels: float  # largest change of a coordinate, if the longest side had 1280 pixels
    ranks_changed: int  # queries that are another token than in float32


@contextmanager
def emulated() -> Iterator[None]:
    """Layers compute as on a GPU: no oneDNN products, Winograd convolutions or compiled blocks."""
    with mock.patch.object(onednn, "is_available", lambda *_: False):
        yield


def network_of(detector: LiteDETR, precision: str) -> LiteDETR:
    """The inference form in a precision; float16 and TF32 as in `emulated`, inside that context."""
    network = prepare_for_inference(detector, DTYPES[precision])
    if precision == "tf32":
        _round_products(network)
    return network


def _round_products(network: LiteDETR) -> None:
    """Makes products round their inputs and weights as the tensor cores do for TF32."""
    for layer in network.modules():
        if isinstance(layer, FoldedConvolution | PackedLinear):
            layer.weight = _to_tf32(layer.weight)
            layer.register_forward_pre_hook(lambda _, given: (_to_tf32(given[0]), *given[1:]))


def _to_tf32(x: Tensor) -> Tensor:
    """Float32 numbers rounded to 10 bits of precision, to the nearest even one."""
    bits = x.view(torch.int32)
    half = (1 << (_TF32_DROPPED_BITS - 1)) - 1 + ((bits >> _TF32_DROPPED_BITS) & 1)
    return ((bits + half) & -(1 << _TF32_DROPPED_BITS)).view(torch.float32)


@contextmanager
def selecting(queries: Tensor | None) -> Iterator[list[Tensor]]:
    """Context in which networks take these queries, or their own; yields those they would select.

    Args:
        queries: int64 [B, Q], see `Transformer.select_queries`.
    """
    own: list[Tensor] = []
    select = Transformer.select_queries

    def selected(transformer: Transformer, best: Tensor) -> Tensor:
        own.append(select(transformer, best))
        return own[-1] if queries is None else queries

    with mock.patch.object(Transformer, "select_queries", selected):
        yield own


def samples() -> dict[str, Image.Image]:
    """The sample photos by name."""
    return {path.stem: Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))}


def copies(photos: Images) -> dict[str, Image.Image]:
    """Changed copies of photos, by name."""
    made = {}
    for name, photo in photos.items():
        made[f"{name}, mirrored"] = ImageOps.mirror(photo)
        made[f"{name}, turned by 180°"] = photo.transpose(Image.Transpose.ROTATE_180)
        made[f"{name}, turned by 90°"] = photo.transpose(Image.Transpose.ROTATE_90)
        made[f"{name}, narrowed"] = photo.resize((photo.width * 3 // 4, photo.height))
        made[f"{name}, darkened"] = ImageEnhance.Brightness(photo).enhance(0.5)
    return made


def scenes(cache_dir: Path, count: int = NUM_SCENES) -> dict[str, Image.Image]:
    """Generated scenes, by name; rendered unless the cache contains them."""
    _, folder = synthetic_set(cache_dir, count)
    files = sorted(folder.rglob("*.jpg"))
    return {f"scene {path.stem}": Image.open(path).convert("RGB") for path in files}


def with_noise(image: Image.Image) -> Image.Image:
    """A copy with the last bit of one pixel in a hundred flipped: one grey level, invisible."""
    pixels = np.array(image)
    chosen = np.random.default_rng(0).random(pixels.shape[:2]) < _NOISY_PIXELS
    pixels[chosen] ^= 1
    return Image.fromarray(pixels)


def changes(precisions: Sequence[str], images: Images, *, noise: bool = False) -> list[Change]:
    """Runs the shipped weights on images, in each precision and in float32.

    Args:
        precisions: names; all but "bf16" are computed as on a GPU.
        images: RGB, by name.
        noise: also float32 on the images `with_noise`, as the precision "fp32, noise".

    Returns:
        For each precision and image: without and with the queries of float32.
    """
    detector, info = load_detector(resolve_model("default"), "cpu")
    exact = Predictor(network_of(detector, "fp32"), info.config)
    expected = {name: _detect(exact, info.config, image) for name, image in images.items()}

    def compared(
        precision: str, predictor: Predictor, changed: Callable[[Image.Image], Image.Image]
    ) -> Iterator[Change]:
        for name, image in images.items():
            exactly, queries = expected[name]
            for forced in (None, queries):
                found, own = _detect(predictor, info.config, changed(image), forced)
                ranks = int((own != queries).sum())
                label = (name, precision, forced is not None)
                yield _change(label, found, exactly, ranks)

    rows: list[Change] = []
    if noise:
        rows += compared("fp32, noise", exact, with_noise)
    for precision in precisions:
        with emulated():
            predictor = Predictor(network_of(detector, precision), info.config)
            rows += compared(precision, predictor, lambda image: image)
    return rows


def _detect(
    predictor: Predictor, config: ModelConfig, image: Image.Image, queries: Tensor | None = None
) -> tuple[Detections, Tensor]:
    """The detections, with boxes in pixels of `LONGEST_SIDE`, and the queries that it selects."""
    height, width = resized_size(
        image.height, image.width, config.shortest_side, config.longest_side
    )
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels: npt.NDArray[np.uint8] = np.asarray(resized)
    scale = LONGEST_SIDE / max(height, width)
    size = (round(scale * height), round(scale * width))
    padded = padded_size(height, width, config.bucket_stride)
    with selecting(queries) as own:
        (found,) = predictor.predict([pixels], padded, [size])
    return found, own[0]


def _change(
    label: tuple[str, str, bool], found: Detections, expected: Detections, ranks_changed: int
) -> Change:
    """Compares each detection with that of its class whose box is nearest."""
    shown = expected.scores >= _SHOWN_SCORE
    scores, boxes = [], []
    for score, of_class, box in zip(
        expected.scores[shown], expected.labels[shown], expected.boxes_xyxy[shown], strict=True
    ):
        distances = np.abs(found.boxes_xyxy - box).max(-1)
        distances[found.labels != of_class] = np.inf
        nearest = int(distances.argmin())
        scores.append(float(abs(found.scores[nearest] - score)))
        boxes.append(float(min(distances[nearest], LONGEST_SIDE)))
    within = [
        score <= MAX_SCORE_CHANGE and box <= MAX_BOX_CHANGE
        for score, box in zip(scores, boxes, strict=True)
    ]
    largest = max(scores, default=0.0), max(boxes, default=0.0)
    return Change(*label, len(within), sum(within), *largest, ranks_changed)
