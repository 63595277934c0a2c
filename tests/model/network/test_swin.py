"""Swin-T: odd sizes, its constant index, and pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import build_detector
from model.geometry import level_shapes
from model.network.backbone.swin import SwinTiny
from model.weights.checkpoint import load_detector, save_checkpoint
from model.weights.info import CheckpointError
from tests.model.network.test_detector import seeded
from tests.model.network.test_inference import assert_alike, batch_of_sizes
from tests.support.small_variants import SmallSwin, shrunk, small_backbones

__all__ = ["small_backbones"]
_INDEX = "layers.0.blocks.0.attn.relative_position_index"


@pytest.mark.usefixtures("small_backbones")
@pytest.mark.parametrize("size", [(64, 128), (97, 130), (33, 225), (31, 450)])
def test_sides_that_no_patch_or_window_divides_are_padded_inside(size: tuple[int, int]) -> None:
    detector = seeded(shrunk("lite-dino-swint-h3l1-2p1x3"))
    images, mask = batch_of_sizes(size, padded=size)
    with torch.inference_mode():
        assert detector.encode(images, mask)[1].spatial_shapes == level_shapes(*size, 4)
    assert_alike(detector, images, mask, torch.float32)


def test_the_networks_size_is_that_of_swin_t() -> None:
    backbone = SwinTiny()
    count = sum(parameter.numel() for parameter in backbone.parameters())
    # 28.29 million of the published classifier, less its head and norm, plus three norms.
    assert count == 28_288_354 - (768 * 1000 + 1000) - 2 * 768 + 2 * (192 + 384 + 768)


def test_the_index_may_be_absent_but_not_another() -> None:
    weights = SmallSwin().state_dict()
    without = {name: tensor for name, tensor in weights.items() if "_index" not in name}
    SmallSwin().load_state_dict(without, strict=True)
    with pytest.raises(RuntimeError, match="is not that of windows of 7 x 7 cells"):
        SmallSwin().load_state_dict({**weights, _INDEX: weights[_INDEX].flip(0)}, strict=True)


@pytest.mark.usefixtures("small_backbones")
def test_a_weights_file_with_another_index_is_refused(tmp_path: Path) -> None:
    config, path = shrunk("dino-swint-4scale"), tmp_path / "a.safetensors"
    weights = dict(build_detector(config).state_dict())
    weights[f"backbone.0.{_INDEX}"] = torch.zeros_like(weights[f"backbone.0.{_INDEX}"])
    labels = ("cat", "dog", "bird")
    save_checkpoint(path, weights, config, labels, score_threshold=0.3, name="a")
    with pytest.raises(CheckpointError, match="does not fit its network"):
        load_detector(path)


def test_weights_of_the_official_classifier_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = SmallSwin().state_dict()
    classifier = {name: tensor for name, tensor in source.items() if not name.startswith("norm")}
    classifier["head.weight"] = torch.ones(1000, 64)
    torch.save({"model": classifier}, tmp_path / "swin.pth")
    backbone = SmallSwin()
    backbone.load_pretrained(str(tmp_path / "swin.pth"))
    assert torch.equal(
        backbone.state_dict()["patch_embed.proj.weight"], source["patch_embed.proj.weight"]
    )
    del classifier["patch_embed.proj.weight"]
    torch.save(classifier, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"has no fitting 'patch_embed\.proj\.weight'"):
        backbone.load_pretrained(str(tmp_path / "swin.pth"))


def test_stages_can_be_frozen() -> None:
    backbone = SmallSwin()
    backbone.freeze_stages(2)
    frozen = {
        name.split(".blocks")[0] for name, p in backbone.named_parameters() if not p.requires_grad
    }
    assert all(name.startswith(("patch_embed", "layers.0")) for name in frozen)
    assert frozen
