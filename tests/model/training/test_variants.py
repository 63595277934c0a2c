"""Every named variant trains, with the losses of its detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import build_detector
from model.network.detector import LiteDETR
from model.training.batches import Batch, collate
from model.training.loss_terms import LOSS_TERMS
from model.training.losses import detection_losses
from model.training.objective import Objective
from model.training.optimizer import build_optimizer
from model.training.sources import CacheSource
from model.training.targets import Targets
from tests.model.network.test_detector import seeded
from tests.model.training.tiny import LABELS, tiny_options, write_cache
from tests.support.small_variants import parametrize_family, shrunk, small_backbones

__all__ = ["small_backbones"]
pytestmark = pytest.mark.usefixtures("small_backbones")
_STEPS = 5


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    source = CacheSource(write_cache(tmp_path, 2), LABELS)
    return collate([source.load(0), source.load(1)])


def _network(name: str) -> LiteDETR:
    torch.manual_seed(0)
    return build_detector(shrunk(name, num_classes=len(LABELS))).train()


@parametrize_family
def test_the_loss_falls_and_has_the_parts_of_the_detector(
    name: str, batch: Batch, tmp_path: Path
) -> None:
    detector = _network(name)
    options = tiny_options(tmp_path, learning_rate=1e-3, backbone_lr_factor=1.0)
    objective, optimizer = Objective(detector, options, None), build_optimizer(detector, options)
    rows = []
    for _ in range(_STEPS):
        torch.manual_seed(1)  # the same denoising queries in each step
        losses = objective.losses(batch)
        rows.append(losses.values())
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    totals = [row["total"] for row in rows]
    assert totals[-1] < 0.97 * totals[0], totals
    present = {part for part in ("denoising", "dense", "one_to_many") if rows[0][part] > 0}
    if "dino" in name:
        assert present == {"denoising", "dense"}
    else:
        assert present == ({"one_to_many"} if "h-detr" in name else set())
    assert rows[0]["decoder"] > 0
    assert rows[0]["proposals"] > 0


@pytest.mark.parametrize("name", ["dino-swint-4scale", "h-detr-swint", "deformable-detr-r50"])
def test_every_parameter_that_trains_gets_a_gradient(
    name: str, batch: Batch, tmp_path: Path
) -> None:
    detector = seeded(shrunk(name, num_classes=len(LABELS))).train()
    Objective(detector, tiny_options(tmp_path), None).losses(batch).total.backward()
    idle = [key for key, p in detector.named_parameters() if p.grad is None]
    assert idle == []


def _perfect_tokens(detector: LiteDETR, targets: Targets) -> torch.Tensor:
    """The proposal term if every token says `no object` but one a target, with its exact box."""
    images = torch.zeros(2, 3, 96, 96)
    padding = torch.zeros(2, 96, 96, dtype=torch.bool)
    output = detector.forward_training(images, padding, None)
    logits = torch.full_like(output.dense_logits, -20.0)
    boxes = output.dense_boxes.detach().clone()
    for image in range(2):
        tokens = output.dense_valid[image].nonzero()[: targets.labels.shape[1], 0]
        logits[image, tokens, 0] = 20.0
        boxes[image, tokens] = targets.boxes[image]
    changed = {**vars(output), "dense_logits": logits, "dense_boxes": boxes}
    losses = detection_losses(
        type(output)(**changed), targets, None, weights=_weights("proposals"), any_object=True
    )
    return losses.total.detach()


def _weights(only: str) -> dict[str, float]:
    return {name: float(name == only) for name in LOSS_TERMS}


def test_tokens_of_a_two_stage_detector_learn_whether_there_is_any_object(batch: Batch) -> None:
    detector = _network("deformable-detr-r50")
    targets = batch.targets
    assert targets.labels.tolist() == [[0], [1]]  # the second is not of the first class
    assert float(_perfect_tokens(detector, targets)) < 1e-3


def test_each_target_has_six_queries_of_the_second_branch(batch: Batch) -> None:
    detector = _network("h-detr-r50")
    images = torch.zeros(2, 3, 96, 96)
    padding = torch.zeros(2, 96, 96, dtype=torch.bool)
    output = detector.forward_training(images, padding, None)
    first = detector.config.num_queries
    logits = torch.full_like(output.pred_logits, -20.0)
    boxes = output.pred_boxes.detach().clone()
    for image in range(2):
        chosen = slice(first, first + 6)
        logits[:, image, chosen, batch.targets.labels[image, 0]] = 20.0
        boxes[:, image, chosen] = batch.targets.boxes[image]
    changed = {**vars(output), "pred_logits": logits, "pred_boxes": boxes}
    weights = _weights("one_to_many")
    wanted = type(output)(**changed)
    losses = detection_losses(wanted, batch.targets, None, weights=weights, any_object=True)
    assert float(losses.total.detach()) < 1e-3
    logits[:, :, first + 5] = -20.0  # five confident queries are one too few
    losses = detection_losses(wanted, batch.targets, None, weights=weights, any_object=True)
    assert float(losses.total.detach()) > 1
