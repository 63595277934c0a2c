"""Losses and the dense assignment."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.network.outputs import TrainingOutput
from model.training.boxes import cxcywh_to_xyxy, iou_and_giou, xyxy_to_cxcywh
from model.training.dense_assignment import assign_tokens
from model.training.loss_terms import LOSS_TERMS
from model.training.losses import (
    Classification,
    detection_losses,
    focal_loss,
    quality_loss,
)
from model.training.targets import Targets, pad_targets

WEIGHTS = {name: term.weight for name, term in LOSS_TERMS.items()}
_BOXES = torch.tensor([[0.3, 0.3, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2]])
_LABELS = torch.tensor([1, 0])


def _targets() -> Targets:
    return pad_targets([_LABELS, _LABELS[:0]], [_BOXES, _BOXES[:0]])


def _confident(rows: int) -> Tensor:
    """[2, rows, 3] logits: the first rows of image 0 say its labels, everything else nothing."""
    logits = torch.full((2, rows, 3), -20.0)
    logits[0, [0, 1], _LABELS] = 20.0
    return logits


def _perfect() -> TrainingOutput:
    boxes = torch.full((2, 6, 4), 0.5)
    boxes[0, :2] = _BOXES
    dense = torch.full((2, 8, 4), 0.1)
    dense[0, :2] = _BOXES
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[:, 4:] = False  # few enough tokens that the candidates' boxes matter
    return TrainingOutput(
        pred_logits=_confident(6).expand(2, -1, -1, -1).clone(),
        pred_boxes=boxes.expand(2, -1, -1, -1).clone(),
        proposal_logits=_confident(6),
        proposal_boxes=boxes,
        dense_logits=_confident(8),
        dense_boxes=dense,
        dense_valid=valid,
        anchors=dense.clone(),
    )


@pytest.mark.parametrize("classification", ["quality", "focal"])
def test_perfect_predictions_cost_almost_nothing(classification: Classification) -> None:
    losses = detection_losses(
        _perfect(), _targets(), None, weights=WEIGHTS, classification=classification
    )
    values = losses.values()
    assert values["decoder"] < 1e-3
    assert values["proposals"] < 1e-3
    assert values["dense"] < 1e-3


def test_total_is_the_sum_of_the_groups_and_its_gradients_are_finite() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(2, 2, 6, 3), torch.rand(2, 2, 6, 4), torch.randn(2, 8, 3)]
    for leaf in leaves:
        leaf.requires_grad_()
    perfect = _perfect()
    output = TrainingOutput(
        pred_logits=leaves[0],
        pred_boxes=leaves[1],
        proposal_logits=perfect.proposal_logits,
        proposal_boxes=perfect.proposal_boxes,
        dense_logits=leaves[2],
        dense_boxes=torch.where(perfect.dense_valid[..., None], perfect.dense_boxes, math.nan),
        dense_valid=perfect.dense_valid,
        anchors=perfect.anchors,
    )
    losses = detection_losses(output, _targets(), None, weights=WEIGHTS)
    values = losses.values()
    groups = ("decoder", "proposals", "denoising", "dense")
    assert values["total"] == pytest.approx(sum(values[name] for name in groups), rel=1e-5)
    losses.total.backward()
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves)


def test_batch_without_boxes_has_a_background_loss() -> None:
    empty = pad_targets([_LABELS[:0]] * 2, [_BOXES[:0]] * 2)
    losses = detection_losses(_perfect(), empty, None, weights=WEIGHTS)
    assert math.isfinite(float(losses.total))
    assert losses.values()["decoder"] > 1
    assert losses.values()["box_l1"] == 0


def test_a_second_detection_of_an_object_costs_and_is_pushed_down() -> None:
    perfect = _perfect()
    weights = WEIGHTS | {"duplicates": 1.0}
    none = detection_losses(perfect, _targets(), None, weights=weights)
    assert none.values()["duplicates"] < 1e-6
    perfect.pred_boxes[:, 0, 4] = _BOXES[0]  # a second query on the first object ...
    perfect.pred_logits[:, 0, 4, 2] = 1.0  # ... which gives it another class
    perfect.pred_logits[:, 0, 1, 1] = 1.0  # and a second class of a matched query
    perfect.pred_logits[:, 0, 5, 0] = 1.0  # not on an object: this one is no duplicate
    perfect.pred_logits.requires_grad_()
    losses = detection_losses(perfect, _targets(), None, weights=weights)
    expected = 2 * 2 * math.log1p(math.e) / 2  # layers, detections, boxes
    assert losses.values()["duplicates"] == pytest.approx(expected, rel=1e-4)
    losses.terms["duplicates"].backward()
    pushed = perfect.pred_logits.grad
    assert pushed is not None
    assert {tuple(row) for row in (pushed[0] > 1e-3).nonzero().tolist()} == {(0, 4, 2), (0, 1, 1)}


def test_dense_loss_teaches_the_given_number_of_tokens() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.8, 0.8]]])
    targets = Targets(
        torch.zeros(1, 1, dtype=torch.int64), boxes, torch.ones(1, 1, dtype=torch.bool)
    )
    anchors, valid = _grid(), torch.ones(1, 64, dtype=torch.bool)
    found = assign_tokens(torch.zeros(1, 64, 3), anchors, anchors, valid, targets, top=4)
    assert len(found.token) == 4


def test_focal_loss_at_a_half_is_the_paper_formula() -> None:
    loss = focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    expected = torch.tensor([0.25, 0.75]) * 0.5**2 * math.log(2)
    torch.testing.assert_close(loss, expected)


def test_quality_loss_is_least_where_the_score_is_the_quality() -> None:
    goal = torch.tensor(0.6)
    logits = torch.linspace(-3, 3, 601)
    loss = quality_loss(logits, goal.expand(601), torch.ones(601, dtype=torch.bool))
    assert float(logits[loss.argmin()].sigmoid()) == pytest.approx(0.6, abs=0.01)


def test_iou_of_disjoint_boxes_is_zero_and_giou_negative() -> None:
    boxes = xyxy_to_cxcywh(torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6]]))
    iou, giou = iou_and_giou(cxcywh_to_xyxy(boxes[0]), cxcywh_to_xyxy(boxes[1]))
    assert float(iou) == 0
    assert float(giou) == pytest.approx(0.02 / 0.36 - 1, abs=1e-5)


def _grid() -> Tensor:
    side = (torch.arange(8) + 0.5) / 8
    y, x = torch.meshgrid(side, side, indexing="ij")
    size = torch.full_like(x, 0.2)
    return torch.stack((x, y, size, size), -1).reshape(1, 64, 4)


def test_tokens_inside_a_box_learn_it_and_the_best_has_its_iou() -> None:
    anchors = _grid()
    targets = pad_targets([torch.tensor([1])], [torch.tensor([[0.5, 0.5, 0.6, 0.6]])])
    valid = torch.ones(1, 64, dtype=torch.bool)
    found = assign_tokens(torch.zeros(1, 64, 3), anchors, anchors, valid, targets)
    assert len(found.token) == 9
    assert bool(((anchors[0, found.token, :2] - 0.5).abs() < 0.3).all())
    assert float(found.quality.max()) == pytest.approx(0.04 / 0.36, abs=1e-4)


def test_box_between_token_centres_still_gets_tokens() -> None:
    anchors = _grid()
    targets = pad_targets([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.02, 0.02]])])
    valid = torch.ones(1, 64, dtype=torch.bool)
    found = assign_tokens(torch.zeros(1, 64, 3), anchors, anchors, valid, targets)
    assert sorted(found.token.tolist()) == [27, 28, 35, 36]


def test_token_is_given_to_one_target_only_and_never_when_invalid() -> None:
    anchors = _grid()
    boxes = torch.tensor([[0.5, 0.5, 0.6, 0.6], [0.52, 0.5, 0.5, 0.5]])
    targets = pad_targets([torch.tensor([0, 1])], [boxes])
    valid = torch.ones(1, 64, dtype=torch.bool)
    valid[0, 27] = False
    found = assign_tokens(torch.zeros(1, 64, 3), anchors, anchors, valid, targets)
    assert len(set(found.token.tolist())) == len(found.token)
    assert 27 not in found.token.tolist()
