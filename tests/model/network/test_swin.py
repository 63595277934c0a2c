"""Swin-T: odd sizes, its constant index, and pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch

from model import VARIANTS, build_detector
from model.geometry import level_shapes
from model.network.backbone.swin import SwinBlock, SwinTiny
from model.training.options import TrainOptions
from model.training.start import build_start
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


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 damaged", b"\x80\x02e."])
def test_a_damaged_file_of_pretrained_weights_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "swin.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"swin\.pth' is damaged"):
        SmallSwin().load_pretrained(str(path))
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no state dict"):
        SmallSwin().load_pretrained(str(path))


def test_stages_can_be_frozen() -> None:
    backbone = SmallSwin()
    backbone.freeze_stages(2)
    frozen = {
        name.split(".blocks")[0] for name, p in backbone.named_parameters() if not p.requires_grad
    }
    assert all(name.startswith(("patch_embed", "layers.0")) for name in frozen)
    assert frozen


def blocks_of(backbone: SmallSwin) -> list[SwinBlock]:
    return [part for part in backbone.modules() if isinstance(part, SwinBlock)]


def test_the_drop_rate_rises_linearly_over_all_blocks() -> None:
    backbone = SwinTiny()
    backbone.set_drop_path(0.2)
    rates = [part.drop_rate for part in backbone.modules() if isinstance(part, SwinBlock)]
    assert rates == pytest.approx([0.2 * index / 11 for index in range(12)])


@pytest.mark.usefixtures("small_backbones")
def test_training_drops_by_its_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "lite-dino-swint-h3l1-2p1x3"
    monkeypatch.setitem(VARIANTS, name, shrunk(name))
    options = TrainOptions(output=tmp_path, variant=name, freeze_backbone_stages=0)
    detector = build_start(options, ("cat",), lambda _line: None)
    assert blocks_of(cast(SmallSwin, detector.body))[-1].drop_rate == pytest.approx(0.2)


def test_nothing_is_dropped_in_evaluation() -> None:
    backbone = SmallSwin().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = backbone(images)
        backbone.set_drop_path(0.9)
        after = backbone(images)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_dropped_branches_are_those_of_whole_images_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    block = SwinBlock(16, 2, shifted=False).train()
    block.drop_rate = 0.75
    branch = torch.ones(4000, 2, 3, 5)
    dropped = block._drop(branch)
    by_image = dropped.flatten(1)
    assert set(by_image.unique().tolist()) == {0.0, 4.0}  # 1 / (1 - 0.75)
    assert bool((by_image == by_image[:, :1]).all())
    assert float(dropped.mean()) == pytest.approx(1, abs=0.1)


def test_attention_and_mlp_of_an_image_are_dropped_independently() -> None:
    torch.manual_seed(0)
    block = SwinBlock(16, 2, shifted=True).train()
    x = torch.randn(1, 7, 7, 16).expand(64, -1, -1, -1)
    block.drop_rate = 0.5
    with torch.no_grad():
        kinds = {tuple(row.flatten()[:4].tolist()) for row in block(x).round(decimals=4)}
    assert len(kinds) == 4  # both, either or none


def test_frozen_stages_drop_nothing() -> None:
    backbone = SmallSwin()
    backbone.set_drop_path(0.5)
    backbone.freeze_stages(2)  # the patch embedding and the first stage
    rates = [block.drop_rate for block in blocks_of(backbone)]
    assert rates[:2] == [0, 0]
    assert min(rates[2:]) > 0


@pytest.mark.usefixtures("small_backbones")
def test_the_inference_form_of_a_network_in_training_drops_nothing() -> None:
    detector = seeded(shrunk("lite-dino-swint-h3l1-2p1x3"))
    detector.body.set_drop_path(0.9)
    images, mask = batch_of_sizes((64, 96), padded=(64, 96))
    assert_alike(detector, images, mask, torch.float32)
