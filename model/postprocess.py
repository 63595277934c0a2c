"""Network output -> detections: the best query-class pairs, boxes in pixels. No NMS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.detections import Detections


def select_detections(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    original_sizes: Sequence[tuple[int, int]],
    max_detections: int,
) -> list[Detections]:
    """The best `max_detections` query-class pairs of each image.

    Args:
        pred_logits: [B, Q, C], before the sigmoid.
        pred_boxes: [B, Q, 4], cxcywh in 0..1 of the unpadded image.
        original_sizes: (H, W) in pixels of each image before the resize.
        max_detections: kept at most; fewer where Q * C is smaller.

    Returns:
        One `Detections` an image, on the CPU, boxes clipped to the image.
    """
    num_classes = pred_logits.shape[-1]
    flat = pred_logits.flatten(1).sigmoid()
    count = min(max_detections, flat.shape[1])
    scores, indices = flat.topk(count, dim=1)
    queries = torch.div(indices, num_classes, rounding_mode="floor")
    boxes = pred_boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    half = boxes[..., 2:] / 2
    corners = torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), dim=-1)
    sizes = torch.tensor([(w, h, w, h) for h, w in original_sizes], dtype=corners.dtype)
    pixels = corners.clamp(0, 1) * sizes.to(corners.device)[:, None]
    columns = (scores.float().cpu(), (indices % num_classes).cpu(), pixels.float().cpu())
    return [
        Detections(score.numpy(), label.numpy(), box.numpy())
        for score, label, box in zip(*columns, strict=True)
    ]
