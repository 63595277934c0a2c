"""Explanations: points and weights are those of the network, for the query of the detection."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.explain import ExplainedImage, attention_of
from model.network.deformable_attention import DeformableAttention, SampledTokens
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.ops.padding import without_padding
from model.predictor import Predictor
from tests.model.network.test_detector import seeded, tiny

SHAPES = ((5, 7), (3, 4), (2, 2), (1, 1))
NAMES = ("cat", "dog", "bird")


def bilinear(plane: np.ndarray, x: float, y: float) -> np.ndarray:
    """A sample of [H, W, D] at normalised coordinates; cells outside are zero."""
    height, width = plane.shape[:2]
    column, row = x * width - 0.5, y * height - 0.5
    total = np.zeros(plane.shape[2])
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += plane[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def attention(**changes: Any) -> tuple[DeformableAttention, SampledTokens, torch.Tensor]:
    """A module with random weights, the tokens that it samples, and 3 queries."""
    torch.manual_seed(0)
    config = tiny(**changes)
    module = DeformableAttention(
        config,
        4,
        key_aware=config.key_aware,
        separate_keys=config.separate_keys,
        same_loc=config.same_loc,
    ).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    count = sum(height * width for height, width in SHAPES)
    value, key = torch.randn(2, 1, count, 2, 16, dtype=torch.float64)
    tokens = SampledTokens(value, key if config.separate_keys else None, SHAPES)
    return module, tokens, torch.randn(1, 3, 32, dtype=torch.float64)


@pytest.mark.parametrize("sides", [2, 4])
@pytest.mark.parametrize(
    "changes", [{}, {"separate_keys": True}, {"same_loc": True}, {"key_aware": False}]
)
def test_points_and_weights_follow_the_formula(changes: dict[str, Any], sides: int) -> None:
    module, tokens, query = attention(**changes)
    references = torch.rand(1, 3, 4, sides, dtype=torch.float64)
    places, weights = attention_of(module, query, references, tokens)
    keys = (tokens.value if tokens.key is None else tokens.key)[0].numpy()
    starts = np.cumsum([0, *(height * width for height, width in SHAPES)])
    with torch.no_grad():
        offsets, weigher = (part[0].numpy() for part in module.sample(query))
    for q in range(3):
        for head in range(2):
            logits = []
            for level, (height, width) in enumerate(SHAPES):
                plane = keys[starts[level] : starts[level + 1], head].reshape(height, width, -1)
                for point in range(4):
                    offset = offsets[q, head, 0 if "same_loc" in changes else level, point]
                    box = references[0, q, level].numpy()
                    scale = box[2:] / 8 if sides == 4 else np.array([1 / width, 1 / height])
                    x, y = (box[:2] + offset * scale).clip(-1, 2)  # outside anyway
                    np.testing.assert_allclose(places[0, q, head, level, point], (x, y))
                    if module.key_aware:
                        logits.append(bilinear(plane, x, y) @ weigher[q, head] / 4.0)
            raw = np.array(logits) if module.key_aware else weigher[q, head]
            expected = np.exp(raw - raw.max())
            expected /= expected.sum()
            np.testing.assert_allclose(weights[0, q, head].flatten(), expected, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"separate_keys": True}])
def test_padding_that_a_gpu_leaves_in_the_tokens_does_not_count(changes: dict[str, Any]) -> None:
    module, tokens, query = attention(**changes)
    references = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    ratios = torch.tensor([[[0.5, 0.6], [0.5, 1.0], [1.0, 0.5], [1.0, 1.0]]])
    value = without_padding(tokens.value, SHAPES, ratios)
    key = None if tokens.key is None else without_padding(tokens.key, SHAPES, ratios)
    zeroed = SampledTokens(value, key, SHAPES)
    _, expected = attention_of(module, query, references, zeroed)
    _, found = attention_of(module, query, references, replace(tokens, valid_ratios=ratios))
    torch.testing.assert_close(found, expected)
    _, ignored = attention_of(module, query, references, tokens)
    assert not torch.allclose(ignored, expected)


@pytest.mark.parametrize("changes", [{}, {"separate_keys": True}, {"key_aware": False}])
def test_the_weighted_samples_are_what_the_layer_returns(changes: dict[str, Any]) -> None:
    module, tokens, query = attention(**changes)
    references = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    places, weights = attention_of(module, query, references, tokens)
    starts = np.cumsum([0, *(height * width for height, width in SHAPES)])
    values = tokens.value[0].numpy()
    sums = np.zeros((3, 2, 16))
    for q, head, level, point in np.ndindex(3, 2, 4, 4):
        height, width = SHAPES[level]
        plane = values[starts[level] : starts[level + 1], head].reshape(height, width, -1)
        x, y = places[0, q, head, level, point].tolist()
        sums[q, head] += bilinear(plane, x, y) * float(weights[0, q, head, level, point])
    with torch.no_grad():
        expected = module.output_proj(torch.from_numpy(sums.reshape(1, 3, 32)))
        returned = module(query, references, tokens, torch.zeros_like(query), norm=nn.Identity())
    torch.testing.assert_close(returned, expected)


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def explained(network: LiteDETR, layer: int | None = None) -> ExplainedImage:
    predictor = Predictor(network, network.config)
    return ExplainedImage(predictor, image(), (64, 128), (120, 180), layer)


@pytest.mark.parametrize("changes", [{}, {"key_aware": False}, {"duplicate_iou": 0.5}])
def test_detections_are_those_of_the_predictor(changes: dict[str, Any]) -> None:
    network = prepare_for_inference(seeded(tiny(**changes)))
    found = explained(network).detections
    (expected,) = Predictor(network, network.config).predict([image()], (64, 128), [(120, 180)])
    for field in ("scores", "labels", "boxes_xyxy"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def test_a_detection_of_another_run_is_found_again() -> None:
    case = explained(prepare_for_inference(seeded(tiny())))
    for row in range(len(case.detections)):
        wanted = case.detections.keep(slice(row, row + 1))
        other_run = replace(
            wanted, boxes_xyxy=wanted.boxes_xyxy + 0.01, scores=wanted.scores - 0.01
        )
        found = case.closest_to(other_run)
        assert (found.labels[0], found.scores[0]) == (wanted.labels[0], wanted.scores[0])


def test_weights_of_a_head_sum_to_one_and_layers_are_named() -> None:
    case = explained(prepare_for_inference(seeded(tiny())))
    explanation = case.explain(case.detections.keep(slice(2, 3)), NAMES)
    assert explanation.label in NAMES
    for points, layer in ((explanation.decoder, 3), (explanation.encoder, 3)):
        np.testing.assert_allclose(points.weights.sum(axis=(1, 2)), 1.0)
        assert points.shares.sum() == pytest.approx(1.0)
        assert (points.layer, points.num_layers, points.key_aware) == (layer, 3, True)
        assert points.xy.shape == (2, 4, 4, 2)
    assert len(explanation.decoder.reference) == 4
    x, y = explanation.encoder.reference
    assert 0 <= x <= 180 and 0 <= y <= 120
    document = explanation.to_dict()
    weights = [point["weight"] for point in document["decoder"]["points"]]  # of 2 heads, rounded
    assert sum(weights) == pytest.approx(2.0, abs=5e-7 * len(weights))
    assert document["strides"] == [8, 16, 32, 64]


@pytest.mark.parametrize("changes", [{}, {"high_level_scales": 2}, {"key_aware": False}])
def test_pixels_do_not_depend_on_how_padding_is_left_out(changes: dict[str, Any]) -> None:
    """The plain network has tokens of padding, its inference form on a CPU none."""
    plain = seeded(tiny(**changes))
    cases = [explained(network) for network in (plain, prepare_for_inference(plain))]
    padded, cropped = (case.explain(case.detections.keep(slice(0, 1)), NAMES) for case in cases)
    assert padded.query == cropped.query
    assert padded.token_level == cropped.token_level
    for stage in ("decoder", "encoder"):
        ours, theirs = getattr(padded, stage), getattr(cropped, stage)
        np.testing.assert_allclose(ours.reference, theirs.reference, atol=0.01)
        np.testing.assert_allclose(ours.xy, theirs.xy, atol=0.01)
        np.testing.assert_allclose(ours.weights, theirs.weights, atol=1e-4)


def test_other_layers_have_other_points() -> None:
    network = prepare_for_inference(seeded(tiny()))
    case = explained(network, 1)
    first = case.explain(case.detections.keep(slice(0, 1)), NAMES).decoder
    case = explained(network)
    last = case.explain(case.detections.keep(slice(0, 1)), NAMES).decoder
    assert (first.layer, last.layer) == (1, 3)
    assert not np.allclose(first.weights, last.weights)


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_layers_that_do_not_exist_are_refused(layer: int) -> None:
    with pytest.raises(ValueError, match="the decoder has 3 layers"):
        explained(seeded(tiny()), layer)


def test_hooks_do_not_remain() -> None:
    network = seeded(tiny())
    explained(network)
    assert not any(module._forward_pre_hooks for module in network.modules())
