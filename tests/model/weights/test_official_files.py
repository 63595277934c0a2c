"""Files laid out as the training code of each official project writes them.

`main.py` of DINO, Lite-DETR, Deformable DETR and H-DETR saves the state dict (an `OrderedDict` with
metadata), optimizer, scheduler, epoch and the arguments; DINO's adds averaged weights. Old files
have the legacy format, and all have tensors of a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model import VARIANTS, ModelConfig, build_detector
from model.weights.conversion import convert
from model.weights.info import CheckpointError, read_model_info
from model.weights.official import load_official
from model.weights.releases import RELEASES
from tests.support import reference_cases
from tests.support.small_variants import shrunk

_COMMON = {
    "device": "cuda",
    "gpu": 0,
    "rank": 0,
    "world_size": 8,
    "lr": 1e-4,
    "lr_backbone_names": ["backbone.0"],
    "nheads": 2,
    "hidden_dim": 32,
    "enc_n_points": 4,
    "dec_n_points": 4,
    "frozen_weights": None,
    "masks": False,
    "output_dir": "exps/one",
}
_DINO = {
    **_COMMON,
    "modelname": "dino",
    "num_classes": 91,
    "num_select": 10,
    "num_queries": 12,
    "two_stage_type": "standard",
    "options": {"batch_size": 2},
    "dln_xy_noise": np.float64(0.2),
    "decoder_module_seq": ["sa", "ca", "ffn"],
    "use_ema": True,
}
_LITE = {**_DINO, "num_expansion": 3, "same_loc": False, "proj_key": False, "key_aware": True}
_TWO_STAGE = {**_COMMON, "with_box_refine": True, "two_stage": True, "dataset_file": "coco"}
_H_DETR = {**_TWO_STAGE, "mixed_selection": True, "look_forward_twice": True, "topk": 10}
_HYBRID = {"num_queries_one2one": 12, "num_queries_one2many": 18, "k_one2many": 6}
PROJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Lite-DETR": ("lite-dino-r50-h2l2-2p1x3", {**_LITE, "enc_scale": 2, "backbone": "resnet50"}),
    "DINO": ("dino-r50-4scale", {**_DINO, "backbone": "resnet50"}),
    "DINO Swin-T": ("dino-swint-4scale", {**_DINO, "backbone": "swin_T_224_1k"}),
    "Deformable DETR": ("deformable-detr-r50", {**_TWO_STAGE, "num_queries": 12}),
    "Deformable DETR of H-DETR": (
        "deformable-detr-r50-ffn2048",
        {**_TWO_STAGE, "num_queries_one2one": 12, "num_queries_one2many": 0, "topk": 10},
    ),
    "H-DETR": ("h-detr-r50", {**_H_DETR, **_HYBRID, "drop_path_rate": 0.2}),
    "H-DETR Swin-T": ("h-detr-swint", {**_H_DETR, **_HYBRID, "backbone": "swin_tiny"}),
}


def _narrow(name: str) -> ModelConfig:
    config = shrunk(name, num_classes=91)
    # The original project's postprocessing has no argument for its 100 detections.
    keeps = {} if name != "deformable-detr-r50" else {"max_detections": 100}
    return type(config)(**{**config.to_dict(), **keeps})


def _training_state(network: nn.Module) -> dict[str, Any]:
    """Optimizer and schedulers after one step of a few parameters."""
    parameters = [p for p in network.parameters() if p.dim() == 1][:3]
    optimizer = torch.optim.AdamW([{"params": [p], "lr": np.float64(1e-4)} for p in parameters])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 11).state_dict(),
        "lr_schedulers": [torch.optim.lr_scheduler.MultiStepLR(optimizer, [33, 45]).state_dict()],
    }


def _write(path: Path, project: str, *, legacy: bool, wrapped: bool) -> ModelConfig:
    """Writes the file of a project with narrow layers; returns its architecture."""
    name, arguments = PROJECTS[project]
    config = _narrow(name)
    torch.manual_seed(0)
    network = build_detector(config)
    state: Any = network.state_dict()
    if wrapped:
        state = nn.ModuleDict({"module": network}).state_dict()
    document = {"model": state, **_training_state(network), "epoch": 35}
    document["args"] = argparse.Namespace(**arguments)
    if arguments.get("use_ema"):
        averaged = OrderedDict((key, value.clone()) for key, value in state.items())
        document["ema_model"] = averaged
    torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    return config


def _check(project: str, folder: Path, *, legacy: bool, wrapped: bool) -> None:
    source, target = folder / "official.pth", folder / "ours.safetensors"
    config = _write(source, project, legacy=legacy, wrapped=wrapped)
    info = convert(source, target)
    assert {**info.config.to_dict(), "name": ""} == {**config.to_dict(), "name": ""}
    assert read_model_info(target).category_ids == tuple(range(91))
    if PROJECTS[project][1].get("use_ema"):
        convert(source, target, ema=True, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("project", PROJECTS)
def test_files_of_every_project_convert(
    project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors of a GPU: only their place in the file differs.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:0")
    _check(project, tmp_path, legacy=project.startswith("Deformable"), wrapped=False)


@pytest.mark.parametrize("legacy", [True, False])
def test_training_state_next_to_the_weights_is_read(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, but quick: the weights are not enough, and that is all that is wrong."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:0")
    small = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    for _, arguments in PROJECTS.values():
        document = {"model": small.state_dict(), **_training_state(small), "epoch": 35}
        document["args"] = argparse.Namespace(**arguments)
        path = tmp_path / "official.pth"
        torch.save(document, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=r"has an unsupported backbone \(unknown\)"):
            load_official(path)


@pytest.mark.slow
@pytest.mark.parametrize("project", ["DINO Swin-T", "H-DETR"])
@pytest.mark.parametrize("legacy", [True, False])
def test_files_of_a_wrapped_model_convert(project: str, legacy: bool, tmp_path: Path) -> None:
    _check(project, tmp_path, legacy=legacy, wrapped=True)


@pytest.mark.parametrize(
    ("name", "case", "prefix"),
    [
        ("dino-swint-4scale", "dino_r50_baseline", "backbone.0."),
        ("h-detr-swint", "hdetr_r50_baseline", "backbone.0.body."),
    ],
)
def test_swin_baselines_have_the_names_of_their_detector_and_of_swin(
    name: str, case: str, prefix: str
) -> None:
    """No reference has these names at once: one has the detector's, another those of Swin-T."""
    detector = reference_cases.FOLDER / f"{case}.json"
    if not detector.is_file():
        pytest.skip("shared/reference is not next to this checkout")
    swin = json.loads((reference_cases.FOLDER / "swint_h3l1_2p1x3_padded.json").read_text())
    expected = {
        key: tuple(shape)
        for key, shape in json.loads(detector.read_text())["state_dict"].items()
        if not key.startswith(("backbone.", "input_proj."))
    }
    for key, shape in swin["state_dict"].items():
        if key.startswith("backbone.0."):
            expected[prefix + key.removeprefix("backbone.0.")] = tuple(shape)
        elif key.startswith("input_proj."):
            expected[key] = tuple(shape)
    with torch.device("meta"):
        found = build_detector(VARIANTS[name]).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == expected


def test_a_network_of_five_scales_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "dino_5scale.pth"
    tensors = {
        "transformer.level_embed": torch.ones(5, 256),
        **{f"backbone.0.body.layer3.{i}.conv3.weight": torch.ones(1) for i in range(6)},
    }
    torch.save({"model": tensors}, path)
    with pytest.raises(CheckpointError, match="has 5 feature levels, not 4"):
        load_official(path)


def test_every_release_has_a_variant_of_its_architecture() -> None:
    """H-DETR's authors train Deformable DETR, too, with an FFN of 2048 channels."""
    assert RELEASES.keys() <= VARIANTS.keys()
    for name, file in RELEASES.items():
        config = VARIANTS[name]
        assert config.encoder_feedforward == config.decoder_feedforward == 2048
        assert ("swin_tiny" in file) == (config.backbone == "swin_tiny")
