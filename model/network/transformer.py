"""Encoder, query selection and decoder: everything under the official `transformer.` names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.decoder import Decoder
from model.network.encoder import InterleavedEncoder
from model.network.geometry import Geometry, GeometryCache, Shapes, make_geometry
from model.network.linear import MLP, Linear
from model.network.position_encoding import CellRule, encode_proposals
from model.network.query_selection import demote_neighbours

_PRIOR_LOGIT = -math.log(99.0)  # classes start at a probability of 1 %


@dataclass(frozen=True)
class Proposals:
    """Scored encoder tokens and the selected ones; for T and S see `Geometry`.

    Attributes:
        tokens: [B, T, d], projected and normed memory.
        logits: [B, T, C], class scores before the sigmoid; meaningless for invalid tokens.
        selected: int64 [B, Q], indices into the S tokens, best first.
        reference_logits: [B, Q, 4], refined boxes of the selected tokens before the sigmoid.
    """

    tokens: Tensor
    logits: Tensor
    selected: Tensor
    reference_logits: Tensor


def box_head(d_model: int) -> MLP:
    """A 3-layer head for box deltas that starts at zero."""
    head = MLP(d_model, d_model, 4, 3)
    last = head.layers[-1]
    assert isinstance(last, Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


def class_head(config: ModelConfig) -> Linear:
    """A linear head for class logits that starts at the prior probability."""
    head = Linear(config.d_model, config.num_classes)
    nn.init.constant_(head.bias, _PRIOR_LOGIT)
    return head


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """The rows of [B, S, F] at indices [B, Q]: [B, Q, F]."""
    return rows.gather(1, indices[..., None].expand(-1, -1, rows.shape[-1]))


def _best_rows(scores: Tensor, count: int) -> Tensor:
    """The rows of the best scores [B, S], at most `count`: int64 [B, count], best first."""
    return scores.topk(min(count, scores.shape[1]), dim=1).indices


class Transformer(nn.Module):
    """The stacks and the encoder's own heads.

    Args:
        config: the architecture.
        bbox_embed: one box head per decoder layer.
        class_embed: one class head per decoder layer.
    """

    blank: Tensor | None
    blank_logits: Tensor | None
    float32_layers = (
        "level_embed",
        "enc_output_norm",
        "enc_out_bbox_embed",
        "enc_out_class_embed",
        "pos_trans",
        "pos_trans_norm",
    )

    def __init__(
        self, config: ModelConfig, bbox_embed: nn.ModuleList, class_embed: nn.ModuleList
    ) -> None:
        super().__init__()
        d_model = config.d_model
        self.level_embed = nn.Parameter(torch.empty(config.num_feature_levels, d_model))
        self.encoder = InterleavedEncoder(config)
        self.decoder = Decoder(config, bbox_embed, class_embed)
        if config.learned_content and config.refined_positions:
            self.tgt_embed = nn.Embedding(config.num_queries, d_model)  # content of the queries
        self.enc_output = Linear(d_model, d_model)
        self.enc_output_norm = nn.LayerNorm(d_model)
        if config.shared_heads:
            self.enc_out_bbox_embed = box_head(d_model)
            self.enc_out_class_embed = class_head(config)
        if not config.refined_positions:
            self.pos_trans = Linear(2 * d_model, 2 * d_model)
            self.pos_trans_norm = nn.LayerNorm(2 * d_model)
        self.config = config
        self.cells = CellRule(config.cell_temperature, config.cell_offset)
        self._reset_parameters()
        # Only in the inference form: what is computed once, not for every batch.
        self.geometry_cache: GeometryCache | None = None
        self.register_buffer("blank", None)
        self.register_buffer("blank_logits", None)

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.level_embed)
        nn.init.xavier_uniform_(self.enc_output.weight)
        nn.init.zeros_(self.enc_output.bias)
        stacks = (self.encoder, self.decoder.layers, self.decoder.ref_point_head)
        for stack in (*stacks, getattr(self, "pos_trans", None)):
            for name, parameter in () if stack is None else stack.named_parameters():
                resets_itself = "self_attn." in name or "cross_attn." in name
                if parameter.dim() > 1 and not resets_itself:
                    nn.init.xavier_uniform_(parameter)

    def inference_form(self, dtype: torch.dtype) -> Transformer:
        """See `model.network.inference`."""
        self.geometry_cache = GeometryCache(dtype, self.cells)
        self.blank = self.enc_output_norm(self.enc_output.bias.to(dtype).to(torch.float32))
        classes = self.token_class_head
        if isinstance(classes, Linear):
            classes = classes.inference_form(torch.float32)
        self.blank_logits = classes(self.blank[None])[0]
        return self

    def geometry_of(self, padding_mask: Tensor, shapes: Shapes) -> Geometry:
        """The geometry of bool [B, H, W] padding and (H, W) of each level."""
        if self.geometry_cache is not None:
            return self.geometry_cache.get(padding_mask, shapes, self.level_embed)
        return make_geometry(padding_mask, shapes, self.level_embed, cells=self.cells)

    @property
    def token_box_head(self) -> nn.Module:
        """The box head of the encoder's tokens."""
        return self.enc_out_bbox_embed if self.config.shared_heads else self.decoder.bbox_embed[-1]

    @property
    def token_class_head(self) -> nn.Module:
        """The class head of the encoder's tokens."""
        if self.config.shared_heads:
            return self.enc_out_class_embed
        return self.decoder.class_embed[-1]

    def propose(self, memory: Tensor, geometry: Geometry, further: int = 0) -> Proposals:
        """Scores every token and selects as many as there are queries (or tokens, if fewer).

        A token that may not propose a box is treated as zeros: see `blank_token`.

        Args:
            memory: [B, T, d], the encoder's output.
            geometry: of the memory.
            further: number of queries after the others (`ModelConfig.one_to_many_queries`).
        """
        exact = geometry.anchors.dtype
        tokens = self.enc_output_norm(self.enc_output(memory).to(exact))
        logits = self.token_class_head(tokens)
        blank, blank_logits = self.blank_token(exact)
        best = self._selection_logit(logits)
        if self.config.neighbour_demotion > 0:
            invalid, kept = geometry.invalid, geometry.kept
            invalid = invalid if kept is None else invalid.index_select(1, kept)
            demotion = self.config.neighbour_demotion
            best = demote_neighbours(best, invalid, geometry.spatial_shapes, demotion)
        if geometry.kept is not None:
            best = best.new_zeros(geometry.invalid.shape).index_copy_(1, geometry.kept, best)
        scores = torch.where(geometry.invalid, self._selection_logit(blank_logits), best)
        selected = self.select_queries(scores)
        if further:
            selected = _best_rows(scores, self.config.num_queries + further)
        rows = selected
        if geometry.kept is not None:  # tokens of padding have no row, and theirs is not used
            rows = torch.searchsorted(geometry.kept, selected).clamp_(max=tokens.shape[1] - 1)
        is_blank = geometry.invalid.gather(1, selected)[..., None]
        chosen = torch.where(is_blank, blank, gather_rows(tokens, rows))
        base = gather_rows(geometry.proposal_logits, selected)
        return Proposals(tokens, logits, selected, self.token_box_head(chosen) + base)

    def _selection_logit(self, logits: Tensor) -> Tensor:
        """The logit that a token is selected by, [...] of [..., C], without gradient."""
        logits = logits.detach()
        return logits.amax(-1) if self.config.select_by_best_class else logits[..., 0]

    def blank_token(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A token of zeros after projection and norm, [d], and its class logits, [C]."""
        if self.blank is not None and self.blank_logits is not None:
            return self.blank, self.blank_logits
        blank = self.enc_output_norm(self.enc_output.bias.to(dtype))
        return blank, self.token_class_head(blank[None])[0]

    def select_queries(self, best: Tensor) -> Tensor:
        """The best tokens by their logit, [B, S]: int64 [B, Q], best first.

        A token's rank chooses its learned content, so near ties that rounding swaps change both
        queries' results a little.
        """
        return _best_rows(best, self.config.num_queries)

    def queries(
        self, proposals: Proposals, learned: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Content and position of the selected queries.

        Args:
            proposals: the selected tokens.
            learned: [Q, d], content by rank for detectors whose positions come from proposals.
            dtype: of the memory.

        Returns:
            Content [B, Q, d], and position [B, Q, d], or None if each decoder layer derives it
            from its boxes.
        """
        batch, count = proposals.selected.shape
        if self.config.refined_positions:
            return self.tgt_embed.weight[:count].expand(batch, -1, -1), None
        boxes = proposals.reference_logits.detach().sigmoid()
        encoded = encode_proposals(boxes, self.config.d_model)
        position, content = self.pos_trans_norm(self.pos_trans(encoded)).chunk(2, dim=-1)
        if learned is not None:
            content = learned[:count].expand(batch, -1, -1)
        return content.to(dtype), position.to(dtype)
