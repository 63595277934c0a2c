"""Encoder, query selection and decoder: everything under the official `transformer.` names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.decoder import MLP, Decoder
from model.network.encoder import InterleavedEncoder
from model.network.levels import Levels
from model.network.query_selection import proposal_logits, propose_boxes

_PRIOR_LOGIT = -math.log(99.0)  # classes start at a probability of 1 %


@dataclass(frozen=True)
class Proposals:
    """Scored encoder tokens and the selected ones.

    Attributes:
        tokens: [B, S, d], projected and normed memory.
        logits: [B, S, C], class scores before the sigmoid.
        anchors: [B, S, 4], each token's proposal, cxcywh 0..1.
        valid: bool [B, S], tokens that may propose.
        selected: int64 [B, Q], best tokens first.
        reference_logits: [B, Q, 4], refined boxes of the selected tokens before the sigmoid.
    """

    tokens: Tensor
    logits: Tensor
    anchors: Tensor
    valid: Tensor
    selected: Tensor
    reference_logits: Tensor


def box_head(d_model: int) -> MLP:
    """A 3-layer head for box deltas that starts at zero."""
    head = MLP(d_model, d_model, 4, 3)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


def class_head(config: ModelConfig) -> nn.Linear:
    """A linear head for class logits that starts at the prior probability."""
    head = nn.Linear(config.d_model, config.num_classes)
    nn.init.constant_(head.bias, _PRIOR_LOGIT)
    return head


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """The rows of [B, S, F] at indices [B, Q]: [B, Q, F]."""
    return rows.gather(1, indices[..., None].expand(-1, -1, rows.shape[-1]))


class Transformer(nn.Module):
    """The stacks and the encoder's own heads.

    Args:
        config: the architecture.
        bbox_embed: one box head a decoder layer.
        class_embed: one class head a decoder layer.
    """

    def __init__(
        self, config: ModelConfig, bbox_embed: nn.ModuleList, class_embed: nn.ModuleList
    ) -> None:
        super().__init__()
        d_model = config.d_model
        self.level_embed = nn.Parameter(torch.empty(config.num_feature_levels, d_model))
        self.encoder = InterleavedEncoder(config)
        self.decoder = Decoder(config, bbox_embed, class_embed)
        self.tgt_embed = nn.Embedding(config.num_queries, d_model)
        self.enc_output = nn.Linear(d_model, d_model)
        self.enc_output_norm = nn.LayerNorm(d_model)
        self.enc_out_bbox_embed = box_head(d_model)
        self.enc_out_class_embed = class_head(config)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.level_embed)
        nn.init.xavier_uniform_(self.enc_output.weight)
        nn.init.zeros_(self.enc_output.bias)
        for stack in (self.encoder, self.decoder.layers, self.decoder.ref_point_head):
            for name, parameter in stack.named_parameters():
                resets_itself = "self_attn." in name or "cross_attn." in name
                if parameter.dim() > 1 and not resets_itself:
                    nn.init.xavier_uniform_(parameter)

    def encode(self, levels: Levels) -> Levels:
        """The memory: the levels with their tokens encoded."""
        return replace(levels, tokens=self.encoder(levels))

    def propose(self, memory: Levels) -> Proposals:
        """Scores every token and selects as many as there are queries (or tokens, if fewer)."""
        anchors, valid = propose_boxes(
            memory.padding_mask, memory.spatial_shapes, memory.tokens.dtype
        )
        tokens = memory.tokens.masked_fill(~valid[..., None], 0.0)
        tokens = self.enc_output_norm(self.enc_output(tokens))
        logits = self.enc_out_class_embed(tokens)
        selected = self.select_queries(logits)
        base = gather_rows(proposal_logits(anchors, valid), selected)
        reference_logits = self.enc_out_bbox_embed(gather_rows(tokens, selected)) + base
        return Proposals(tokens, logits, anchors, valid, selected, reference_logits)

    def select_queries(self, logits: Tensor) -> Tensor:
        """The best tokens by [B, S, C] class logits: int64 [B, Q], best first.

        A token's rank chooses its learned content, so near ties that rounding swaps change both
        queries' answers a little.
        """
        best = logits.detach().amax(-1)
        count = min(self.tgt_embed.num_embeddings, best.shape[1])
        return best.topk(count, dim=1).indices

    def content(self, proposals: Proposals) -> Tensor:
        """Learned content of the selected queries [B, Q, d]; it does not depend on the image."""
        batch, count = proposals.selected.shape
        return self.tgt_embed.weight[:count].expand(batch, -1, -1)
