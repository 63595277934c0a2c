"""The R50 network with random weights that give detections; imports nothing of the service."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from model import VARIANTS, build_detector
from model.network.detector import LiteDETR

_R50 = "lite-dino-r50-h3l1-2p1x3"
R50_SIDES = (192, 256)  # of comparisons on a CPU, which takes seconds for a full-size image


def random_r50_detector() -> LiteDETR:
    """The R50 network with random weights; its class heads give scores from 0 to 1."""
    config = replace(VARIANTS[_R50], shortest_side=R50_SIDES[0], longest_side=R50_SIDES[1])
    torch.manual_seed(0)
    detector = build_detector(config).eval()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for head in (detector.class_embed[0], detector.transformer.enc_out_class_embed):
            assert isinstance(head, nn.Linear)
            head.weight.copy_(2 * torch.randn_like(head.weight) / config.d_model**0.5)
            head.bias.fill_(-3.0)
    return detector
