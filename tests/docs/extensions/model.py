"""Example changes of the model: see `tests.docs.extensions`."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.docs.extensions.checkout import ExtensionCheckout


def resize_rule(checkout: ExtensionCheckout) -> None:
    """Both sides become even; serving, evaluation and the buckets follow."""
    last_line = r"^    return \(size, other\) if height <= width else \(other, size\)$"
    checkout.replace(
        "model/geometry.py",
        last_line,
        "    size, other = size + size % 2, other + other % 2\n"
        "    return (size, other) if height <= width else (other, size)",
    )
    checkout.run(
        "-c",
        """
import io
from PIL import Image
from model.config import ModelConfig
from model.geometry import padded_size, reachable_buckets, resized_size
from model.images.decode import ImageLimits, decode_image

config = ModelConfig(shortest_side=333, longest_side=555, bucket_stride=32)
sides = config.shortest_side, config.longest_side
buckets = reachable_buckets(*sides, config.bucket_stride)
for width in range(1, 2000, 7):
    height, width = resized_size(500, width, *sides)
    assert height % 2 == width % 2 == 0, (height, width)
    assert padded_size(height, width, config.bucket_stride) in buckets
file = io.BytesIO()
Image.new("RGB", (1000, 700)).save(file, "PNG")
pixels = decode_image(file.getvalue(), config, ImageLimits(10**6, 10**6)).pixels
assert pixels.shape == (334, 476, 3), pixels.shape
""",
    )


def model_variant(checkout: ExtensionCheckout) -> None:
    """A narrower network, which `lite-detr train --variant` accepts."""
    checkout.insert(
        "model/config.py",
        r"^_VARIANTS = \(\n",
        '    ModelConfig(name="lite-dino-tiny", backbone="resnet18", d_model=64, num_heads=2),\n',
    )
    checkout.run(
        "-c",
        """
from model.config import VARIANTS
from model.network.detector import build_detector
from model.training.options import TrainOptions
options = TrainOptions(variant="lite-dino-tiny")
detector = build_detector(VARIANTS[options.variant])
assert sum(each.numel() for each in detector.parameters()) > 10**6
""",
    )


def backbone(checkout: ExtensionCheckout) -> None:
    """A backbone of three convolutions, in training and in inference form."""
    checkout.add(
        "model/network/backbone/example.py",
        '''
"""Three convolutions."""

from torch import Tensor, nn

from model.network.backbone.base import Backbone, Maps


class Example(Backbone):
    """Has no pretrained weights."""

    channels = (8, 16, 24)

    def __init__(self) -> None:
        super().__init__()
        self.finest = nn.Conv2d(3, 8, 8, stride=8)
        self.middle = nn.Conv2d(8, 16, 2, stride=2)
        self.coarsest = nn.Conv2d(16, 24, 2, stride=2)

    def forward(self, images: Tensor) -> Maps:
        finest = self.finest(images).relu()
        middle = self.middle(finest).relu()
        return finest, middle, self.coarsest(middle).relu()

    def stages(self) -> list[nn.Module]:
        return [self.finest, self.middle, self.coarsest]
''',
    )
    checkout.insert(
        "model/network/backbone/__init__.py",
        r"^BACKBONES: .*\n",
        '    "example": "model.network.backbone.example:Example",\n',
    )
    checkout.run(
        "-c",
        """
from dataclasses import replace
import torch
from model.config import VARIANTS
from model.network.detector import build_detector
from model.network.inference import prepare_for_inference
config = replace(VARIANTS["lite-dino-r18-small"], backbone="example", num_classes=3)
detector = build_detector(config).eval()
images, padding = torch.rand(1, 3, 64, 128), torch.zeros(1, 64, 128, dtype=torch.bool)
with torch.inference_mode():
    plain = detector(images, padding).pred_logits
    served = prepare_for_inference(detector)(images, padding).pred_logits
assert plain.shape == served.shape == (1, config.num_queries, 3)
assert torch.allclose(plain, served, atol=1e-3), (plain - served).abs().max()
""",
    )


def kernel(checkout: ExtensionCheckout) -> None:
    """An operation `square` with a reference and a compiled CPU kernel."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler here, so there are no compiled kernels to test")
    checkout.add(
        "model/ops/csrc/example.cpp",
        """
#include <cstdint>

struct Square {
    const float* values;
    int64_t count;
};

extern "C" void lite_detr_square(const Square* problem, float* result) {
    for (int64_t i = 0; i < problem->count; ++i)
        result[i] = problem->values[i] * problem->values[i];
}
""",
    )
    checkout.add(
        "model/ops/example.py",
        '''
"""Squares of float32 tensors on the CPU (`csrc/example.cpp`)."""

import ctypes

from torch import Tensor

from model.ops import cpu


class _Square(ctypes.Structure):
    _fields_ = (("values", ctypes.c_void_p), ("count", ctypes.c_int64))


def square(values: Tensor) -> Tensor:
    """Any shape, contiguous."""
    result = values.new_empty(values.shape)
    problem = _Square(values.data_ptr(), values.numel())
    cpu.library().lite_detr_square(ctypes.byref(problem), result.data_ptr())
    return result
''',
    )
    checkout.insert(
        "model/ops/cpu.py", r'^    "lite_detr_winograd_gather",\n', '    "lite_detr_square",\n'
    )
    checkout.append(
        "model/ops/reference.py",
        """

def square(values: Tensor) -> Tensor:
    return values * values
""",
    )
    checkout.append(
        "model/ops/__init__.py",
        """

def square(values: Tensor) -> Tensor:
    from model.ops import example

    if implementation_name(values.device) == "cpu" and values.dtype == torch.float32:
        return example.square(values.contiguous())
    return reference.square(values)
""",
    )
    checkout.run(
        "-c",
        """
import torch
from model.ops import example, implementation_name, select_implementation, square
values = torch.randn(3, 5)
assert implementation_name("cpu") == "cpu"
assert torch.equal(example.square(values), values * values)
assert torch.equal(square(values), values * values)
select_implementation("reference")
assert torch.equal(square(values), values * values)
""",
    )


def loss_term(checkout: ExtensionCheckout) -> None:
    """A term `area`, which gets an option, a share of the total, and a place in the log."""
    checkout.insert(
        "model/training/loss_terms.py",
        r'^    "dense": LossTerm\(.*\n',
        '    "area": LossTerm("area_loss", "relative difference of box areas", weight=2.0),\n',
    )
    checkout.insert(
        "model/training/losses.py",
        r"(?s)^def decoder_loss.*?(?=^def )",
        '''def area_loss(inputs: LossInputs) -> Tensor:
    """Mean area of the boxes of the last decoder layer."""
    return inputs.output.pred_boxes[-1, ..., 2:].prod(-1).mean()


''',
    )
    checkout.write_output("docs/configuration.md", "-m", "service.cli.configuration")
    assert "`--area-weight`" in (checkout.folder / "docs/configuration.md").read_text()
    checkout.run(
        "-c",
        """
import tempfile
from pathlib import Path
from model.training.report import read_log
from model.training.sources import CacheSource
from tests.model.training.tiny import LABELS, tiny_options, tiny_trainer, write_cache

folder = Path(tempfile.mkdtemp(dir="."))
options = tiny_options(folder, max_iterations=2, area_weight=3.0)
tiny_trainer(options, CacheSource(write_cache(folder), LABELS)).run()
row = read_log(folder)[-1]
terms = [row[name] for name in ("decoder", "proposals", "denoising", "dense", "area")]
assert row["area"] > 0
assert abs(row["total"] - sum(terms)) < 1e-3 * row["total"]
""",
    )


def evaluation_metric(checkout: ExtensionCheckout) -> None:
    """AR of small objects, computed from COCO's tables and printed by `lite-detr eval`."""
    scores = "model/evaluation/scores.py"
    checkout.insert(
        scores, r"^    ar_100: float \| None\n(?=    per_class)", "    ar_small: float | None\n"
    )
    checkout.insert(
        scores, r"AR@100 \{cell\(scores\.ar_100\)\}", ", AR small {cell(scores.ar_small)}"
    )
    checkout.insert(
        "model/evaluation/evaluate.py",
        r"^        ar_100=_mean\(recall\[:, :, _ALL_AREAS, 2\]\),\n",
        "        ar_small=_mean(recall[:, :, 1, 2]),\n",
    )
    checkout.run(
        "-c",
        """
import json
import numpy as np
from model.data.annotations import GroundTruth
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections, evaluate_coco, format_scores

document = {
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
    "categories": [{"id": 7, "name": "code"}],
    "annotations": [
        {"id": n, "image_id": 1, "category_id": 7, "iscrowd": 0, "area": side * side,
         "bbox": [x, 0, side, side]}
        for n, x, side in ((1, 0, 10), (2, 50, 40))
    ],
}
truth = GroundTruth.from_coco(document)
boxes = np.array([[0, 0, 10, 10]], np.float32)
found = Detections(np.ones(1, np.float32), np.array([7]), boxes)
scores = evaluate_coco([ImageDetections(1, found, 1.0)], truth)
assert (scores.ar_small, scores.ar_100) == (1.0, 0.5), scores
assert "AR small 1.000" in format_scores(scores)
assert json.loads(scores.to_json())["ar_small"] == 1.0
""",
    )


EXAMPLES: dict[str, Callable[[ExtensionCheckout], None]] = {
    "resize rule": resize_rule,
    "model variant": model_variant,
    "backbone": backbone,
    "kernel": kernel,
    "loss term": loss_term,
    "evaluation metric": evaluation_metric,
}
