"""Every named variant: fast path = plain path, weights files, official checkpoints, training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from model import VARIANTS, ModelConfig, build_detector
from model.config import ModelConfig as Config
from model.network.detector import LiteDETR, separate_branches
from model.network.query_selection import demote_neighbours
from model.ops import implementation_name, operators
from model.predictor import Predictor
from model.weights.checkpoint import load_detector, save_checkpoint
from tests.model.network.test_detector import seeded
from tests.model.network.test_inference import assert_alike, batch_of_sizes
from tests.support.small_variants import FAMILY, parametrize_family, shrunk, small_backbones

__all__ = ["small_backbones"]
_LAYOUTS = ("h2l2-2p1x3", "h3l1-6p1x1", "h3l1-2p1x3")
_ROWS = {  # those of the paper's tables
    *(f"lite-{name}-{layout}" for name in ("dino-r50", "dino-swint") for layout in _LAYOUTS),
    *(f"lite-{name}-{layout}" for name in ("h-detr-r50", "h-detr-swint") for layout in _LAYOUTS),
    *(f"lite-deformable-detr-r50-{layout}" for layout in (*_LAYOUTS, "h3l1-3p1x2")),
    "dino-r50-4scale",
    "dino-swint-4scale",
    "h-detr-r50",
    "h-detr-swint",
    "deformable-detr-r50",
}


def test_the_published_rows_have_names() -> None:
    assert set(FAMILY) >= _ROWS
    assert all(VARIANTS[name].name == name for name in VARIANTS)


@pytest.mark.parametrize(
    ("name", "high", "layers_per_block", "backbone", "queries"),
    [
        ("lite-dino-swint-h2l2-2p1x3", 2, 2, "swin_tiny", 900),
        ("lite-deformable-detr-r50-h3l1-3p1x2", 3, 3, "resnet50", 300),
        ("lite-h-detr-swint-h3l1-6p1x1", 3, 6, "swin_tiny", 300),
    ],
)
def test_a_name_says_the_layout(
    name: str, high: int, layers_per_block: int, backbone: str, queries: int
) -> None:
    config = VARIANTS[name]
    assert config.high_level_scales == high
    assert config.encoder_layers // config.encoder_blocks == layers_per_block
    assert (config.backbone, config.num_queries) == (backbone, queries)


@pytest.mark.usefixtures("small_backbones")
@parametrize_family
def test_the_fast_path_is_the_plain_path(name: str) -> None:
    images, mask = batch_of_sizes((64, 200), (40, 50), padded=(64, 256))
    detector = seeded(shrunk(name))
    assert_alike(detector, images, mask, torch.float32)
    assert_alike(detector, images[:1], mask[:1], torch.float32)


@pytest.mark.usefixtures("small_backbones")
@parametrize_family
def test_a_weights_file_is_loaded_strictly_and_detects_on_the_compiled_kernels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = shrunk(name), tmp_path / f"{name}.safetensors"
    detector = seeded(config)
    labels = ("cat", "dog", "bird")
    weights = detector.state_dict()
    save_checkpoint(path, weights, config, labels, score_threshold=0.3, name=name)
    loaded, info = load_detector(path)
    assert info.config == config
    found = loaded.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in weights.items())
    calls = _count_kernels(monkeypatch)
    predictor = Predictor(loaded, config)
    image = torch.zeros(60, 90, 3, dtype=torch.uint8).numpy()
    (detections,) = predictor.predict([image], (64, 128), [(120, 180)])
    assert len(detections) == config.max_detections
    if implementation_name("cpu") == "cpu":
        kernel = "key_aware_deform_attn" if config.key_aware else "ms_deform_attn"
        assert calls == {kernel: config.encoder_layers + config.decoder_layers}


def _count_kernels(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of the compiled kernels from now on, by name."""
    calls: Counter[str] = Counter()

    def count(name: str, kernel: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        calls[name] += 1
        return kernel(*arguments)

    for name in ("key_aware_deform_attn", "ms_deform_attn"):
        kernel = getattr(operators, name)
        monkeypatch.setattr(operators, name, partial(count, name, kernel))
    return calls


def test_neighbours_of_a_better_token_rank_lower() -> None:
    scores = torch.tensor([[5.0, 4.0, 1.0, 3.0, 2.0, 0.0, 9.0, 9.0]])  # 2 x 3 cells, then 1 x 2
    invalid = torch.zeros(1, 8, dtype=torch.bool)
    found = demote_neighbours(scores, invalid, ((2, 3), (1, 2)), 10.0)
    assert found.tolist() == [[5.0, -6.0, -9.0, -7.0, -8.0, -10.0, 9.0, 9.0]]
    invalid[0, 1] = True  # not a neighbour: the best of the others right of it is a peak
    found = demote_neighbours(scores, invalid, ((2, 3), (1, 2)), 10.0)
    assert found.tolist() == [[5.0, -6.0, -9.0, -7.0, -8.0, -10.0, 9.0, 9.0]]
    scores[0, 2] = 2.5
    assert demote_neighbours(scores, invalid, ((2, 3), (1, 2)), 10.0)[0, 2] == 2.5


@pytest.mark.usefixtures("small_backbones")
def test_with_demoted_neighbours_the_fast_path_is_the_plain_path_and_selects_others() -> None:
    images, mask = batch_of_sizes((64, 200), (40, 50), padded=(64, 256))
    name = "lite-dino-r50-h2l2-2p1x3"
    plain = seeded(shrunk(name))
    detector = seeded(replace(shrunk(name), neighbour_demotion=50.0))
    detector.load_state_dict(plain.state_dict())
    assert_alike(detector, images, mask, torch.float32)
    assert_alike(detector, images[:1], mask[:1], torch.float32)
    assert not torch.equal(plain(images, mask).pred_boxes, detector(images, mask).pred_boxes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"neighbour_demotion": -1.0}, "neighbour_demotion"),
        ({"learned_content": False}, "learned_content"),
        ({"one_to_many_queries": 5}, "one_to_many_queries"),
        ({"max_detections": 0}, "max_detections"),
        ({"cell_temperature": 1.0}, "cell_temperature"),
        ({"cell_offset": -0.5}, "cell_offset"),
        ({"inverse_sigmoid_eps": 0.5}, "inverse_sigmoid_eps"),
        ({"inverse_sigmoid_eps": float("nan")}, "inverse_sigmoid_eps"),
    ],
)
def test_contradicting_fields_are_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=rf"ModelConfig\.{field}="):
        replace(ModelConfig(), **changes)  # type: ignore[arg-type]


def test_configs_survive_json() -> None:
    for config in VARIANTS.values():
        assert Config.from_dict(config.to_dict()) == config


@pytest.mark.usefixtures("small_backbones")
def test_the_one_to_many_branch_changes_no_other_query() -> None:
    """H-DETR's second branch exists in training only, and neither branch sees the other."""
    detector = seeded(shrunk("h-detr-r50")).double()
    images, mask = batch_of_sizes((64, 96), padded=(64, 96))
    output = detector.forward_training(images.double(), mask, None)
    inference = detector(images.double(), mask)
    queries = detector.config.num_queries
    assert output.one_to_many == 18
    assert inference.pred_logits.shape[1] == queries
    torch.testing.assert_close(output.pred_logits[-1, :, :queries], inference.pred_logits)
    torch.testing.assert_close(output.pred_boxes[-1, :, :queries], inference.pred_boxes)


def test_branches_are_separate_in_both_directions() -> None:
    mask = separate_branches(3, 1, torch.device("cpu"))
    assert mask is not None
    assert mask.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    assert separate_branches(3, 0, torch.device("cpu")) is None


@pytest.mark.usefixtures("small_backbones")
@pytest.mark.parametrize("name", ["h-detr-r50", "deformable-detr-r50"])
def test_small_images_have_fewer_queries(name: str) -> None:
    detector = build_detector(shrunk(name, num_queries=500))
    images, mask = batch_of_sizes((64, 128), padded=(64, 128))
    tokens = sum((64 // stride) * (128 // stride) for stride in (8, 16, 32, 64))
    output = detector.forward_training(images, mask, None)
    assert output.pred_logits.shape[2] == tokens
    assert output.one_to_many == 0
    assert _finite(detector)


def _finite(detector: LiteDETR) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in detector.parameters())
