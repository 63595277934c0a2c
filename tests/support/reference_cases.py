"""Reads outputs of the official code from ../shared/reference, where that folder exists."""

from __future__ import annotations

import copy
import functools
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model import VARIANTS, ModelConfig, build_detector
from model.network.detector import LiteDETR

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
SUPPORTED_BASES = {
    "DINO_4scale.py": "lite-dino-r50-h3l1-2p1x3",
    "DINO_4scale_swinT.py": "lite-dino-swint-h3l1-2p1x3",
    "dino": "dino-r50-4scale",
    "ddetr": "deformable-detr-r50",
    "hdetr": "h-detr-r50",
}
FAST_CASE = "r50_h3l1_2p1x3"  # tested by `make test`; the others only by `make test-all`


def case_names() -> list[str]:
    """Names of the reference cases whose architecture this project implements."""
    names = sorted(path.stem for path in FOLDER.glob("*.json"))
    return [name for name in names if load_case(name).meta["base"] in SUPPORTED_BASES]


def parametrize_cases(*, only_one_is_fast: bool, family: bool = False) -> pytest.MarkDecorator:
    """Runs a test with the `name` of each case; skips it without the folder.

    Args:
        only_one_is_fast: marks all cases but `FAST_CASE` slow.
        family: leaves the same cases to `make test-family`.
    """
    marks = [pytest.mark.slow] * (only_one_is_fast or family) + [pytest.mark.family] * family
    cases = [
        name if name == FAST_CASE else pytest.param(name, marks=marks) for name in case_names()
    ]
    missing = pytest.mark.skip(reason="shared/reference is not next to this checkout")
    return pytest.mark.parametrize("name", cases or [pytest.param("none", marks=missing)])


def detector_of(name: str) -> LiteDETR:
    """A new copy of the case's network, which is built once for tests that follow each other."""
    return copy.deepcopy(_built(name))


@functools.lru_cache(maxsize=1)
def _built(name: str) -> LiteDETR:
    meta = load_case(name).meta
    detector = build_detector(config_of(meta)).eval()
    detector.load_state_dict(weights_of(meta), strict=True)
    return detector


@functools.cache
def recipe() -> ModuleType:
    """The module that rebuilds the weights of the cases."""
    spec = importlib.util.spec_from_file_location("reference_recipe", FOLDER / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_case(name: str) -> Any:
    """`meta` and `arrays` of one case."""
    return recipe().load(name)


def config_of(meta: dict[str, Any]) -> ModelConfig:
    """The config with the case's overrides."""
    names = {
        "num_expansion": "encoder_blocks",
        "enc_scale": "high_level_scales",
        "key_aware": "key_aware",
        "proj_key": "separate_keys",
        "same_loc": "same_loc",
    }
    overrides = meta.get("config") or {}
    fields = {names[key]: value for key, value in overrides.items()}
    return replace(VARIANTS[SUPPORTED_BASES[meta["base"]]], **fields)


def weights_of(meta: dict[str, Any]) -> dict[str, Tensor]:
    """The rebuilt weights by their official names, and the constant index of Swin's windows."""
    weights = {name: torch.from_numpy(value) for name, value in recipe().state_dict(meta).items()}
    cells = np.stack(np.unravel_index(np.arange(49), (7, 7)))  # y, x of a window's cells
    y, x = cells[:, :, None] - cells[:, None, :] + 6
    index = torch.from_numpy(y * 13 + x)
    constant = [name for name in meta["state_dict"] if name.endswith("relative_position_index")]
    found = {**weights, **dict.fromkeys(constant, index)}
    return {name: found[name] for name in meta["state_dict"] if name in found}


def batch_of(arrays: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The case's images, zero-padded to the largest: [B, 3, H, W] and the padding mask."""
    images = [arrays[key] for key in sorted(arrays) if key.startswith("image_")]
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    batch = np.zeros((len(images), 3, height, width))
    mask = np.ones((len(images), height, width), dtype=bool)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[1], : image.shape[2]] = image
        mask[index, : image.shape[1], : image.shape[2]] = False
    return torch.from_numpy(batch).to(dtype), torch.from_numpy(mask)
