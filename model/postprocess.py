"""Network output -> detections: the best query-class pairs, boxes in pixels.

DETR needs no non-maximum suppression, and none is done unless a model's config enables it
(`ModelConfig.duplicate_iou`): a model trained briefly may detect an object more than once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.detections import Detections


def select_detections(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    original_sizes: Sequence[tuple[int, int]],
    max_detections: int,
    duplicate_iou: float = 1.0,
) -> list[Detections]:
    """The best `max_detections` query-class pairs of each image.

    Args:
        pred_logits: [B, Q, C], before the sigmoid.
        pred_boxes: [B, Q, 4], cxcywh in 0..1 of the unpadded image.
        original_sizes: (H, W) in pixels of each image before the resize.
        max_detections: maximum kept; fewer where Q * C is smaller.
        duplicate_iou: see `drop_duplicates`; 1 keeps all.

    Returns:
        One `Detections` per image, on the CPU, boxes clipped to the image.
    """
    rows = best_pairs(pred_logits, pred_boxes, max_detections).cpu().numpy()
    return to_detections(rows, original_sizes, duplicate_iou)


def best_pairs(pred_logits: Tensor, pred_boxes: Tensor, max_detections: int) -> Tensor:
    """The part of `select_detections` on the device; on a GPU it does not wait.

    Returns:
        float32 [B, K, 6], best score first: score, class id (exact below 2^24), and the corners of
        the box in 0..1 of the unpadded image.
    """
    num_classes = pred_logits.shape[-1]
    scores, indices = _best(pred_logits, max_detections)
    queries = torch.div(indices, num_classes, rounding_mode="floor")
    boxes = pred_boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    half = boxes[..., 2:] / 2
    corners = torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), dim=-1)
    pair = torch.stack((scores.float(), (indices % num_classes).float()), dim=-1)
    return torch.cat((pair, corners.clamp(0, 1).float()), dim=-1)


def best_indices(pred_logits: Tensor, max_detections: int) -> Tensor:
    """The pairs of `best_pairs`, int64 [B, K]: query * classes + class id."""
    return _best(pred_logits, max_detections)[1]


def _best(pred_logits: Tensor, max_detections: int) -> tuple[Tensor, Tensor]:
    flat = pred_logits.flatten(1).sigmoid()
    scores, indices = flat.topk(min(max_detections, flat.shape[1]), dim=1)
    return scores, indices


def to_detections(
    rows: npt.NDArray[np.float32],
    original_sizes: Sequence[tuple[int, int]],
    duplicate_iou: float = 1.0,
) -> list[Detections]:
    """The part of `select_detections` on the host; the result shares no memory with `rows`.

    Args:
        rows: [B, K, 6] of `best_pairs`.
        original_sizes: (H, W) in pixels of each image before the resize.
        duplicate_iou: see `drop_duplicates`; 1 keeps all.
    """
    sizes = np.array([(w, h, w, h) for h, w in original_sizes], dtype=np.float32).reshape(-1, 1, 4)
    pixels = rows[..., 2:] * sizes
    found = [
        Detections(image[:, 0].copy(), image[:, 1].astype(np.int64), boxes)
        for image, boxes in zip(rows, pixels, strict=True)
    ]
    if duplicate_iou >= 1:
        return found
    return [drop_duplicates(detections, duplicate_iou) for detections in found]


def drop_duplicates(detections: Detections, iou: float) -> Detections:
    """Drops each detection that overlaps a better, kept one of any class by more than `iou`.

    Args:
        detections: best score first.
        iou: intersection over union, 0..1.
    """
    overlaps = _pairwise_iou(detections.boxes_xyxy) > iou
    keep = np.ones(len(detections), dtype=np.bool_)
    for index in range(len(detections)):
        if keep[index]:
            keep[index + 1 :] &= ~overlaps[index, index + 1 :]
    return detections.keep(keep)


def _pairwise_iou(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """IoU of every pair of [N, 4] corner boxes: [N, N]; 0 for empty boxes."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    union = areas[:, None] + areas[None, :] - shared
    ratios: npt.NDArray[np.float32] = shared / np.maximum(union, np.finfo(np.float32).tiny)
    return ratios
