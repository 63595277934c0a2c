"""AdamW with the parameter groups that detection transformers need."""

from __future__ import annotations

import torch
from torch import nn

from model.training.options import TrainOptions

_EMBEDDINGS = (
    "label_enc",
    "tgt_embed",
    "query_embed",
    "level_embed",
    "relative_position_bias_table",
)
_SLOW = ("sampling_offsets", "reference_points")  # the places that attention samples


def build_optimizer(detector: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """Builds AdamW with a group per learning rate and decay, without frozen parameters.

    Each group has its own `base_lr`, which the schedule multiplies. Norms, biases and
    embeddings do not decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0
        if name.startswith("backbone."):
            factor = options.backbone_lr_factor
        elif any(part in name for part in _SLOW):
            factor = options.sampling_lr_factor
        decays = parameter.dim() > 1 and not any(part in name for part in _EMBEDDINGS)
        key = (options.learning_rate * factor, options.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets each group's rate to `factor` times its `base_lr`; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
