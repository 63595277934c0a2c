"""Every variant of the family is loaded and detects as it is served: the same stages as `/detect`.

The weights are random and the input is small; the widths are those of the variant.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model import VARIANTS, ModelConfig
from model.data.image_files import FILE_LIMITS
from model.labels import COCO_LABELS
from model.weights.checkpoint import save_checkpoint
from service.build import open_core
from service.cli.inputs import ImageFile
from service.cli.offline import OfflineDetector
from service.engine.torch_device import TorchDevice
from service.types import DetectOptions
from tests.support.fake_service import detect, quiet_settings
from tests.support.images import solid_png
from tests.support.small_variants import (
    FAMILY,
    parametrize_whole_family,
    shrunk,
    small_backbones,
)
from tests.support.small_weights import weights_of

pytestmark = pytest.mark.usefixtures("threads_as_before")

__all__ = ["small_backbones"]
IMAGE = solid_png((90, 120, 150), 64, 48)
_SMALL_INPUT: dict[str, Any] = {"shortest_side": 96, "longest_side": 160}


def _write(folder: Path, name: str, config: ModelConfig) -> Path:
    path = folder / f"{name}.safetensors"
    save_checkpoint(
        path, weights_of(config), config, COCO_LABELS, score_threshold=0.3, name=config.name
    )
    return path


def _detect(folder: Path, name: str, config: ModelConfig) -> None:
    """Loads the variant and checks the detections in one image."""
    (folder / "image.png").write_bytes(IMAGE)
    device = TorchDevice(_write(folder, name, config), "cpu", 0, "auto")
    detector = OfflineDetector(device, FILE_LIMITS, DetectOptions(threshold=0.0))
    file = detector.detect(ImageFile(str(folder / "image.png")), "test")
    assert file.error is None
    result = file.result
    assert result is not None
    found = result.detections
    assert result.model_name == config.name
    assert 0 < len(found) <= config.max_detections
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= (64, 48, 64, 48)).all()
    assert set(found.labels.tolist()) <= set(range(91))


@parametrize_whole_family  # builds and writes 40 to 50 million weights each
def test_a_variant_is_loaded_and_detects(name: str, tmp_path: Path) -> None:
    _detect(tmp_path, name, replace(VARIANTS[name], **_SMALL_INPUT))


@pytest.mark.usefixtures("small_backbones")
def test_a_narrow_variant_is_loaded_and_detects(tmp_path: Path) -> None:
    name = "lite-h-detr-swint-h3l1-6p1x1"
    _detect(tmp_path, name, shrunk(name, num_classes=91, **_SMALL_INPUT))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite-h-detr-swint-h2l2-2p1x3", "deformable-detr-r50-ffn2048"])
async def test_a_variant_is_served(name: str, tmp_path: Path) -> None:
    """With an engine process; the others differ from these in the network only."""
    path = _write(tmp_path, name, replace(VARIANTS[name], **_SMALL_INPUT))
    settings = quiet_settings(model=str(path), device="cpu", warm_up_seconds=0)
    async with open_core(settings) as core:
        await core.first_ready
        result = await detect(core.detector, IMAGE)
    assert result.model_name == name
    assert (result.width, result.height) == (64, 48)


def test_the_family_has_26_variants() -> None:
    assert len(FAMILY) == 26
