"""The network has the numbers and the parameter names of the official code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model import VARIANTS, ModelConfig, build_detector
from model.detections import Detections
from model.geometry import level_shapes
from model.network.detector import LiteDETR
from model.postprocess import select_detections
from tests.support import golden_case, reference_cases


def detections_match(ours: Detections, scores, labels, boxes, size) -> int:
    """The number of official detections with a match in ours (as sets: near ties may swap)."""
    tolerance = 1e-3 * max(size)
    matched = 0
    for score, label, box in zip(scores, labels, boxes, strict=True):
        near = (ours.labels == label) & (np.abs(ours.scores - score) <= 1e-4)
        near &= (np.abs(ours.boxes_xyxy - box) <= tolerance).all(-1)
        matched += bool(near.any())
    return matched


@reference_cases.parametrize_cases(only_one_is_fast=True)
def test_official_outputs_are_reproduced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = reference_cases.load_case(name)
    detector = reference_cases.detector_of(name)
    selections: list[torch.Tensor] = []
    select = detector.transformer.select_queries

    def remember(best: torch.Tensor) -> torch.Tensor:
        selections.append(select(best))
        return selections[-1]

    monkeypatch.setattr(detector.transformer, "select_queries", remember)
    assert_official(detector.double(), case, rows=True)
    # In float32 near ties of the top-k may swap, and a token's rank chooses its content: with the
    # exact selection all else must agree.
    monkeypatch.setattr(detector.transformer, "select_queries", lambda _: selections[0])
    assert_official(detector.float(), case, rows=False)


def assert_official(detector: LiteDETR, case: Any, *, rows: bool) -> None:
    """Holds memory, query rows (if asked) and the set of detections to the official numbers."""
    dtype = detector.transformer.level_embed.dtype
    images, mask = reference_cases.batch_of(case.arrays, dtype)
    with torch.inference_mode():
        output = detector(images, mask)
    for field in ("memory", "pred_logits", "pred_boxes") if rows else ("memory",):
        expected = torch.from_numpy(case.arrays[field]).to(dtype)
        torch.testing.assert_close(getattr(output, field), expected, atol=1e-4, rtol=0)
    targets = [case.arrays[f"target_size_{i}"] for i in range(len(images))]
    sizes = [(int(height), int(width)) for height, width in targets]
    found = select_detections(output.pred_logits, output.pred_boxes, sizes, 300)
    for index, (detections, (height, width)) in enumerate(zip(found, sizes, strict=True)):
        limits = np.array([width, height, width, height], dtype=np.float32)
        matched = detections_match(
            detections,
            case.arrays[f"scores_{index}"],
            case.arrays[f"labels_{index}"],
            np.clip(case.arrays[f"boxes_{index}"], 0, limits),
            (height, width),
        )
        # The 300th score may tie with the 301st: only the last row may differ.
        assert matched >= len(case.arrays[f"scores_{index}"]) - 1


@reference_cases.parametrize_cases(only_one_is_fast=False)
def test_parameter_names_and_shapes_are_the_official_ones(name: str) -> None:
    case = reference_cases.load_case(name)
    detector = build_detector(reference_cases.config_of(case.meta))
    ours = {key: list(value.shape) for key, value in detector.state_dict().items()}
    assert ours == {key: list(shape) for key, shape in case.meta["state_dict"].items()}


def tiny(**changes) -> ModelConfig:
    base = replace(
        VARIANTS["lite-dino-r18-small"],
        d_model=32,
        num_heads=2,
        encoder_feedforward=32,
        decoder_feedforward=32,
        num_classes=3,
        num_queries=12,
        max_detections=12,
    )
    return replace(base, **changes)


def seeded(config: ModelConfig) -> LiteDETR:
    torch.manual_seed(0)
    detector = build_detector(config).eval()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return detector


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_aware": False},
        {"separate_keys": True},
        {"same_loc": True},
        {"high_level_scales": 2},
        {"interleaved": False, "key_aware": False},
        {"interleaved": False, "key_aware": True},
        {"encoder_layers": 4, "encoder_blocks": 2},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()) or "default",
)
def test_padding_and_other_images_do_not_change_a_result(changes: dict[str, object]) -> None:
    detector = seeded(tiny(**changes)).double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    alone = detector(image, torch.zeros(1, 64, 96, dtype=torch.bool))
    batch = torch.zeros(2, 3, 64, 96, dtype=torch.float64)
    batch[0] = image[0]
    batch[1, :, :40, :50] = torch.randn(3, 40, 50, dtype=torch.float64)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = True
    mask[1, :, 50:] = True
    together = detector(batch, mask)
    torch.testing.assert_close(together.pred_logits[:1], alone.pred_logits)
    torch.testing.assert_close(together.pred_boxes[:1], alone.pred_boxes)


@pytest.mark.parametrize("levels", [3, 5])
@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_level_shapes_are_those_of_the_feature_maps(backbone: str, levels: int) -> None:
    config = tiny(backbone=backbone, num_feature_levels=levels, high_level_scales=2)
    detector = build_detector(config).eval()
    for size in ((128, 192), (97, 130)):
        images, mask = torch.zeros(1, 3, *size), torch.zeros(1, *size, dtype=torch.bool)
        with torch.inference_mode():
            shapes = detector.encode(images, mask)[1].spatial_shapes
        assert level_shapes(*size, levels) == shapes


def test_low_level_tokens_change_once_a_block() -> None:
    detector = build_detector(tiny(encoder_layers=6, encoder_blocks=2))
    expands = [layer.small_expand for layer in detector.transformer.encoder.layers]
    assert expands == [False, False, True, False, False, True]


def test_training_and_inference_agree_on_the_last_layer() -> None:
    detector = seeded(tiny())
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    inference = detector(images, mask)
    training = detector.forward_training(images, mask, None)
    torch.testing.assert_close(training.pred_logits[-1], inference.pred_logits)
    torch.testing.assert_close(training.pred_boxes[-1], inference.pred_boxes)


def test_every_trained_parameter_gets_a_gradient() -> None:
    detector = seeded(tiny())
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    output = detector.forward_training(images, mask, None)
    parts = (output.pred_logits, output.pred_boxes, output.dense_logits, output.dense_boxes)
    torch.stack([part.square().sum() for part in parts]).sum().backward()
    idle = [name for name, p in detector.named_parameters() if p.grad is None]
    assert idle == ["label_enc.weight"]  # the denoising queries alone use it


def test_fewer_tokens_than_queries_give_as_many_predictions() -> None:
    detector = seeded(tiny(num_queries=500))
    output = detector(torch.randn(1, 3, 64, 128), torch.zeros(1, 64, 128, dtype=torch.bool))
    assert output.pred_logits.shape[1] < 500
    assert output.pred_boxes.isfinite().all()


@pytest.mark.parametrize(
    ("images", "mask", "message"),
    [
        ((1, 64, 64), (1, 64, 64), "images should be"),
        ((1, 4, 64, 64), (1, 64, 64), "images should be"),
        ((1, 3, 64, 64), (1, 32, 64), "padding_mask"),
    ],
)
def test_misshapen_input_is_refused(images, mask, message) -> None:
    detector = build_detector(tiny())
    with pytest.raises(ValueError, match=message):
        detector(torch.zeros(images), torch.zeros(mask, dtype=torch.bool))


def test_shipped_case_keeps_its_numbers() -> None:
    expected = np.load(golden_case.FILE)
    for name, values in golden_case.outputs().items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)
