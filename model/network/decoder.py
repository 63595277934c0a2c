"""The decoder: queries attend to one another and to the memory, and refine their boxes.

DINO (arXiv 2203.03605): conditional queries from boxes, box refinement in each layer, and "look
forward twice": the gradient of a layer's output boxes also reaches the layer before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.deformable_attention import DeformableAttention, SampledTokens
from model.network.geometry import Geometry
from model.network.linear import MLP, Linear, affine_of, feed_forward
from model.network.one_call import OneCall
from model.network.position_encoding import box_frequencies, encode_boxes
from model.network.query_selection import inverse_sigmoid
from model.network.self_attention import SelfAttention
from model.ops.decoder_stack import DecoderStack, StackedLayer, StackShape

_FEW_QUERIES = 300  # the products of more take much longer than starting them


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, FFN; each with a residual and a norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model = config.d_model
        # The official decoder ignores proj_key and same_loc: they are encoder settings.
        self.cross_attn = DeformableAttention(
            config,
            config.decoder_points,
            key_aware=config.key_aware and config.key_aware_decoder,
        )
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = SelfAttention(d_model, config.num_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, config.decoder_feedforward)
        self.linear2 = Linear(config.decoder_feedforward, d_model)
        self.norm3 = nn.LayerNorm(d_model)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        reference_boxes: Tensor,
        memory: SampledTokens,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """[B, Q, d] queries -> [B, Q, d]; `reference_boxes` [B, Q, L, 4]."""
        x = self.self_attn(x, query_position, attention_mask, norm=self.norm2)
        x = self.cross_attn(x + query_position, reference_boxes, memory, x, norm=self.norm1)
        return feed_forward(x, self.linear1, self.linear2, self.norm3)

    def stacked(self, box_head: MLP) -> StackedLayer:
        """The parameters, with those of the head that refines the boxes."""
        query_key, value = self.self_attn.projections()
        cross = self.cross_attn
        return StackedLayer(
            query_key=query_key,
            value=value,
            attended=affine_of(self.self_attn.out_proj),
            after_attention=affine_of(self.norm2),
            memory=affine_of(cross.value_proj),
            offsets=affine_of(cross.sampling_offsets),
            scores=affine_of(cross.query_layer()),
            sampled=affine_of(cross.output_proj),
            after_sampling=affine_of(self.norm1),
            widen=affine_of(self.linear1),
            narrow=affine_of(self.linear2),
            after_feed_forward=affine_of(self.norm3),
            box=tuple(map(affine_of, box_head.layers)),
        )


@dataclass(frozen=True)
class DecoderStates:
    """What each decoder layer returned and received.

    Attributes:
        hidden: a layer's queries before the last norm, [B, Q, d] each.
        references: the boxes a layer received, [B, Q, 4] cxcywh 0..1 each.
    """

    hidden: tuple[Tensor, ...]
    references: tuple[Tensor, ...]


class Decoder(OneCall[DecoderStack]):
    """`config.decoder_layers` layers around the heads.

    Args:
        config: the architecture.
        bbox_embed: one box head per layer, then perhaps that of the encoder's tokens.
        class_embed: one class head per layer.
    """

    float32_layers = ("norm", "bbox_embed", "class_embed")

    def __init__(
        self, config: ModelConfig, bbox_embed: nn.ModuleList, class_embed: nn.ModuleList
    ) -> None:
        super().__init__()
        d_model = config.d_model
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(d_model) if config.decoder_norm else nn.Identity()
        self.ref_point_head: MLP | None = None
        if config.refined_positions:
            self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)
        self.eps = config.inverse_sigmoid_eps
        self.bbox_embed = bbox_embed
        self.class_embed = class_embed
        self._has_few_queries = config.num_queries <= _FEW_QUERIES

    def inference_form(self, dtype: torch.dtype) -> Decoder:
        """See `model.network.inference`."""
        first = cast(DecoderLayer, self.layers[0])
        scale = first.norm1.weight.detach()
        takes_place = self._has_few_queries and self.can_stack(scale, dtype)
        if self.ref_point_head is None or not takes_place:
            return self
        cross = first.cross_attn
        shape = StackShape(
            heads=cross.num_heads,
            levels=cross.num_levels,
            points=cross.num_points,
            key_aware=cross.key_aware,
            eps=self.eps,
            norm_eps=first.norm1.eps,
        )
        layers = [
            cast(DecoderLayer, layer).stacked(cast(MLP, head))
            for layer, head in zip(self.layers, self.bbox_embed, strict=False)
        ]
        to_hidden, to_position = map(affine_of, self.ref_point_head.layers)
        stack = DecoderStack(
            layers,
            position=(to_hidden, to_position),
            frequencies=box_frequencies(len(scale), scale),
            last=affine_of(self.norm) if isinstance(self.norm, nn.LayerNorm) else None,
            classes=affine_of(self.class_embed[len(layers) - 1]),
            shape=shape,
        )
        self.use_stack(stack)
        return self

    def forward(  # noqa: PLR0913, PLR0917 - the parts of queries and memory
        self,
        content: Tensor,
        reference_logits: Tensor,
        memory: Tensor,
        geometry: Geometry,
        attention_mask: Tensor | None = None,
        position: Tensor | None = None,
    ) -> DecoderStates:
        """Runs the layers.

        Args:
            content: [B, Q, d].
            reference_logits: [B, Q, 4], boxes before the sigmoid.
            memory: [B, S, d], the encoder's output.
            geometry: of the memory.
            attention_mask: bool [Q, Q], True where a query may not see another, or None.
            position: [B, Q, d] of the queries in all layers; None: from each layer's boxes.
        """
        x, boxes = content, reference_logits.sigmoid()
        memories = self.project_memory(memory, geometry)
        received = boxes  # with its gradient; `boxes` has none
        hidden, references = [], []
        for layer, head, sampled in zip(self.layers, self.bbox_embed, memories, strict=False):
            query_position = position
            if self.ref_point_head is not None:
                encoded = encode_boxes(boxes * geometry.query_ratios, content.shape[-1])
                query_position = self.ref_point_head(encoded.to(content.dtype))
            boxes_by_level = boxes[:, :, None] * geometry.box_ratios
            x = layer(x, query_position, boxes_by_level, sampled, attention_mask)
            hidden.append(x.to(boxes.dtype))
            references.append(received)
            if len(hidden) < len(self.layers):
                received = self.refine(head, hidden[-1], boxes)
                boxes = received.detach()
        return DecoderStates(tuple(hidden), tuple(references))

    def predict(
        self,
        content: Tensor,
        reference_logits: Tensor,
        memory: Tensor,
        geometry: Geometry,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, C] and boxes [B, Q, 4] of the last layer; see `forward`."""
        if self.stack is not None and self.stacked_weights is not None and position is None:
            return self.stack.run(
                self.stacked_weights,
                content=content,
                box_logits=reference_logits,
                memory=memory,
                padding=geometry.padding,
                spatial_shapes=geometry.spatial_shapes,
                query_ratios=geometry.query_ratios,
                box_ratios=geometry.box_ratios,
            )
        states = self(content, reference_logits, memory, geometry, position=position)
        hidden, last = self.norm(states.hidden[-1]), len(self.layers) - 1
        boxes = self.refine(self.bbox_embed[last], hidden, states.references[-1])
        return self.class_embed[last](hidden), boxes

    def refine(self, head: nn.Module, hidden: Tensor, boxes: Tensor) -> Tensor:
        """Boxes [B, Q, 4] refined by a box head from the queries [B, Q, d]."""
        return (head(hidden) + inverse_sigmoid(boxes, self.eps)).sigmoid()  # type: ignore[no-any-return]

    def project_memory(self, memory: Tensor, geometry: Geometry) -> list[SampledTokens]:
        """The memory as each layer's cross-attention samples it, while it is in the cache."""
        attentions = [cast(DecoderLayer, layer).cross_attn for layer in self.layers]
        return [attention.project(memory, geometry) for attention in attentions]
