"""Contrastive denoising queries (DINO, Zhang et al. 2022, section 3.3).

Each group has two noised copies of every target: a positive that must be restored and, further
away, a negative that must be rejected. They enter the decoder before the ordinary queries, which
must not attend to them, as they contain the targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.network.outputs import DenoisingQueries
from model.training.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from model.training.targets import Matches, Targets


@dataclass(frozen=True)
class DenoisingBatch:
    """Denoising queries and their targets.

    Attributes:
        queries: input of the decoder; N queries per image.
        matches: the positives with their targets (layer 0 throughout).
        counted: bool [B, N]; False on the padding of images with fewer targets.
        groups: copies of each target; the loss is divided by it.
    """

    queries: DenoisingQueries
    matches: Matches
    counted: Tensor
    groups: int


def make_denoising(  # noqa: PLR0913 - the parameters of the noise
    targets: Targets,
    label_enc: nn.Embedding,
    *,
    num_classes: int,
    num_queries: int,
    wanted: int,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> DenoisingBatch | None:
    """Makes decoder queries of noised copies of the targets.

    Args:
        targets: of the batch.
        label_enc: num_classes + 1 rows of d; its output is the query content, with gradients.
        num_classes: upper bound of random labels, exclusive.
        num_queries: Q, ordinary queries that follow the denoising ones.
        wanted: approximate number of denoising queries per image; at least one group is made.
        label_noise: half of this share of the labels is drawn at random.
        box_noise: positives move each corner by less than this times half the box's size,
            negatives by one to two times that.

    Returns:
        None if the batch has no target or `wanted` is 0.
    """
    size = targets.labels.shape[1]
    if size == 0 or wanted == 0 or not bool(targets.present.any()):
        return None
    groups = max(wanted // (2 * size), 1)
    # One group: T positives, then T negatives.
    present = targets.present.repeat(1, 2 * groups)  # [B, N]
    is_negative = torch.arange(2 * groups, device=present.device).remainder(2) == 1
    is_negative = is_negative.repeat_interleave(size)  # [N]
    labels = _noised_labels(targets.labels.repeat(1, 2 * groups), num_classes, label_noise)
    boxes = _noised_boxes(targets.boxes.repeat(1, 2 * groups, 1), is_negative, box_noise)
    content = label_enc(labels) * present[..., None]
    reference = torch.where(present[..., None], boxes, 0.5).clamp(1e-3, 1 - 1e-3).logit()
    image, query = (present & ~is_negative).nonzero(as_tuple=True)
    matches = Matches(torch.zeros_like(image), image, query, query % size)
    mask = attention_mask(groups, 2 * size, num_queries).to(present.device)
    queries = DenoisingQueries(content, reference, mask)
    return DenoisingBatch(queries, matches, present, groups)


def attention_mask(groups: int, group_size: int, num_queries: int) -> Tensor:
    """Bool [N + Q, N + Q], True = row may not attend to column.

    A group attends to itself and the ordinary queries; ordinary queries only to themselves.
    """
    count = groups * group_size
    group = torch.arange(count) // group_size
    mask = torch.zeros(count + num_queries, count + num_queries, dtype=torch.bool)
    mask[:count, :count] = group[:, None] != group[None, :]
    mask[count:, :count] = True
    return mask


def _noised_labels(labels: Tensor, num_classes: int, noise: float) -> Tensor:
    redraw = torch.rand(labels.shape, device=labels.device) < noise / 2
    return torch.where(redraw, torch.randint_like(labels, num_classes), labels)


def _noised_boxes(boxes: Tensor, is_negative: Tensor, noise: float) -> Tensor:
    corners = cxcywh_to_xyxy(boxes)
    half_size = boxes[..., 2:].repeat(1, 1, 2) / 2
    shift = torch.rand_like(corners) + is_negative[None, :, None]
    sign = torch.randint_like(corners, 2) * 2 - 1
    moved = (corners + sign * shift * half_size * noise).clamp(0, 1)
    # Corners that passed each other give a negative size, which the caller clamps to a tiny one.
    # They must not be sorted: two far shifts inwards would give the box itself.
    return xyxy_to_cxcywh(moved)
