"""Bipartite matching."""

from __future__ import annotations

import itertools

import pytest
import torch

from model.training.matcher import NonFiniteError, match, matching_cost
from model.training.targets import Targets, pad_targets


def _targets(counts: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Targets:
    generator = torch.Generator().manual_seed(1)
    labels = [torch.randint(3, (count,), generator=generator) for count in counts]
    boxes = [(torch.rand(count, 4, generator=generator) * 0.4 + 0.2).to(dtype) for count in counts]
    return pad_targets(labels, boxes)


def test_matching_is_the_cheapest_permutation() -> None:
    torch.manual_seed(0)
    targets = _targets((3,))
    logits, boxes = torch.randn(1, 1, 5, 3), torch.rand(1, 1, 5, 4)
    cost = matching_cost(logits, boxes, targets)[0, 0]
    best = min(
        sum(float(cost[query, target]) for target, query in enumerate(queries))
        for queries in itertools.permutations(range(5), 3)
    )
    found = match(logits, boxes, targets)
    assert float(cost[found.query, found.target].sum()) == pytest.approx(best)


def test_all_prediction_sets_are_matched_in_one_call() -> None:
    torch.manual_seed(0)
    targets = _targets((2, 0, 4))
    logits, boxes = torch.randn(2, 3, 6, 3), torch.rand(2, 3, 6, 4)
    together = match(logits, boxes, targets)
    assert together.layer.bincount().tolist() == [6, 6]
    assert together.image.bincount(minlength=3).tolist() == [4, 0, 8]
    alone = match(logits[1:], boxes[1:], targets)
    second = together.layer == 1
    assert torch.equal(together.query[second], alone.query)
    assert torch.equal(together.target[second], alone.target)


def test_predictions_equal_to_targets_are_matched_to_them() -> None:
    targets = _targets((3,))
    logits = torch.full((1, 1, 3, 3), -5.0)
    order = torch.tensor([2, 0, 1])
    logits[0, 0, torch.arange(3), targets.labels[0, order]] = 5.0
    found = match(logits, targets.boxes[None][:, :, order], targets)
    assert torch.equal(found.target, order[found.query])


def test_more_targets_than_queries_leaves_targets_unmatched() -> None:
    found = match(torch.zeros(1, 1, 2, 3), torch.rand(1, 1, 2, 4), _targets((5,)))
    assert len(found.query) == 2


def test_double_precision_is_kept() -> None:
    targets = _targets((2,), torch.float64)
    logits = torch.randn(1, 1, 4, 3, dtype=torch.float64)
    cost = matching_cost(logits, torch.rand(1, 1, 4, 4, dtype=torch.float64), targets)
    assert cost.dtype == torch.float64


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
def test_nan_is_refused_by_name(name: str) -> None:
    tensors = {"pred_logits": torch.zeros(1, 1, 2, 3), "pred_boxes": torch.rand(1, 1, 2, 4)}
    tensors[name][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=name):
        match(tensors["pred_logits"], tensors["pred_boxes"], _targets((1,)))
