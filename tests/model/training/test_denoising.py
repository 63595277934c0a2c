"""Contrastive denoising queries."""

from __future__ import annotations

import torch
from torch import nn

from model.network.outputs import DenoisingQueries
from model.training.boxes import cxcywh_to_xyxy, iou_and_giou
from model.training.denoising import DenoisingBatch, make_denoising
from model.training.targets import Targets, pad_targets
from tests.model.training.tiny import CONFIG, quick_detector


def _targets() -> Targets:
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.4]])
    labels = torch.tensor([0, 1])
    return pad_targets([labels, labels[:1]], [boxes, boxes[:1]])


def _make(wanted: int = 16) -> DenoisingBatch:
    torch.manual_seed(0)
    made = make_denoising(
        _targets(), nn.Embedding(3, 32), num_classes=2, num_queries=12, wanted=wanted
    )
    assert made is not None
    return made


def test_query_count_is_approximately_the_wanted_one() -> None:
    made = _make(wanted=18)
    assert made.groups == 4
    assert made.queries.content.shape == (2, 16, 32)
    assert made.counted.sum(1).tolist() == [16, 8]


def test_positives_stay_near_and_negatives_go_further() -> None:
    made = _make(wanted=64)
    matches, boxes = made.matches, _targets().boxes
    noised = cxcywh_to_xyxy(made.queries.reference_logits.sigmoid())
    wanted = boxes[matches.image, matches.target]
    shift = (noised[matches.image, matches.query] - cxcywh_to_xyxy(wanted)).abs()
    assert bool((shift <= wanted[:, 2:].repeat(1, 2) / 2 + 1e-2).all())
    # The negative of a positive stands T = 2 places later.
    negative = noised[matches.image, matches.query + 2]
    iou, _ = iou_and_giou(negative, cxcywh_to_xyxy(wanted))
    assert float(iou.max()) < 0.6


def test_half_of_the_label_noise_changes_labels() -> None:
    torch.manual_seed(0)
    count = 4000
    targets = pad_targets([torch.zeros(count, dtype=torch.int64)], [torch.full((count, 4), 0.5)])
    embedding = nn.Embedding(101, 1)
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(101.0)[:, None])
    made = make_denoising(targets, embedding, num_classes=100, num_queries=1, wanted=1)
    assert made is not None
    redrawn = float((made.queries.content != 0).float().mean())
    assert 0.22 < redrawn < 0.28


def test_no_targets_give_no_queries() -> None:
    empty = pad_targets([torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 4)])
    made = make_denoising(empty, nn.Embedding(3, 8), num_classes=2, num_queries=4, wanted=10)
    assert made is None


def _outputs(queries: DenoisingQueries) -> torch.Tensor:
    detector = quick_detector().eval()
    torch.manual_seed(1)
    images = torch.randn(2, 3, 96, 96)
    mask = torch.zeros(2, 96, 96, dtype=torch.bool)
    with torch.no_grad():
        return detector.forward_training(images, mask, queries).pred_logits


def test_changing_one_group_does_not_affect_other_groups_and_ordinary_queries() -> None:
    queries = _make().queries
    size = 4  # two targets, positives and negatives
    changed = queries.content.clone()
    changed[:, size : 2 * size] += 1.0
    other = DenoisingQueries(changed, queries.reference_logits, queries.attention_mask)
    before, after = _outputs(queries), _outputs(other)
    differs = (before != after).any(-1).any(0).any(0)
    assert bool(differs[size : 2 * size].all())
    keep = torch.ones_like(differs)
    keep[size : 2 * size] = False
    torch.testing.assert_close(before[:, :, keep], after[:, :, keep])


def test_ordinary_queries_give_the_same_as_without_denoising() -> None:
    queries = _make().queries
    none = DenoisingQueries(
        queries.content[:, :0], queries.reference_logits[:, :0], queries.attention_mask[16:, 16:]
    )
    torch.testing.assert_close(_outputs(queries)[:, :, -CONFIG.num_queries :], _outputs(none))
