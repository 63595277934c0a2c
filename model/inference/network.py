"""The inference network: a loaded detector, prepared once for one device and one precision.

`Predictor` runs it in the detector's place: the same images and masks in, the same output, up to
rounding. It shares no weights with the detector, cannot be trained, and keeps no names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.inference.backbone import fold_backbone
from model.inference.geometry import Geometry, GeometryCache, Shapes
from model.inference.layers import Convolution, Norm, Product
from model.inference.stacks import FastDecoder, FastEncoder, FastMLP
from model.network.detector import LiteDETR
from model.network.outputs import DetectorOutput
from model.network.transformer import Transformer, gather_rows


class InferenceDetector(nn.Module):
    """Detects as `LiteDETR` does.

    Args:
        detector: in evaluation mode, float32, on its device; it may be thrown away afterwards.
        dtype: of all but boxes, what refines them, and class scores, which are float32.
    """

    def __init__(self, detector: LiteDETR, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        transformer = detector.transformer
        self.dtype = dtype
        backbone = cast(nn.Module, detector.backbone[0].body)
        self.backbone = fold_backbone(backbone, dtype)
        self.projections = nn.ModuleList(
            _Projection(layers, dtype) for layers in detector.input_proj
        )
        self.geometry = GeometryCache(transformer.level_embed.detach().clone(), dtype)
        self.encoder = FastEncoder(transformer.encoder, dtype)
        self.selection = QuerySelection(transformer, dtype)
        content = transformer.tgt_embed.weight.detach().to(dtype, copy=True)
        self.register_buffer("content", content)
        self.decoder = FastDecoder(transformer.decoder, dtype)

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Detects objects; see `LiteDETR.forward`.

        Args:
            images: float32 [B, 3, H, W], normalised RGB, zero on padding.
            padding_mask: bool [B, H, W], True on padding (right and bottom).

        Returns:
            As the detector's; of one image on a CPU, `memory` has no rows of padding
            (`geometry.real_tokens` tells which are left).
        """
        maps = self.backbone(images.to(self.dtype, memory_format=torch.channels_last))
        sources, projected = [*maps, maps[-1]], []
        for index, projection in enumerate(self.projections):
            projected.append(projection(sources[index]))
            if index >= len(maps):
                sources.append(projected[-1])
        shapes = tuple((level.shape[2], level.shape[3]) for level in projected)
        geometry = self.geometry.of(padding_mask, shapes)
        memory = self.encoder(tokens_of(projected, geometry.spatial_shapes), geometry)
        reference_logits = self.selection(memory, geometry)
        content = self.get_buffer("content")[: reference_logits.shape[1]]
        content = content.expand(len(reference_logits), -1, -1)
        logits, boxes = self.decoder(content, reference_logits, memory, geometry)
        return DetectorOutput(logits, boxes, memory)


def tokens_of(maps: Sequence[Tensor], shapes: Shapes) -> Tensor:
    """The upper left (H, W) of each [B, d, H', W'] map, one after the other: [B, S, d]."""
    batch, channels = maps[0].shape[:2]
    sizes = [height * width for height, width in shapes]
    tokens = maps[0].new_empty(batch, sum(sizes), channels)
    parts = tokens.split(sizes, dim=1)  # type: ignore[no-untyped-call]
    for part, level, (height, width) in zip(parts, maps, shapes, strict=True):
        rectangle = level[:, :, :height, :width].permute(0, 2, 3, 1)
        part.view(batch, height, width, channels).copy_(rectangle)
    return tokens


class _Projection(nn.Module):
    """A level's input projection: a convolution and GroupNorm."""

    def __init__(self, projection: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(projection, nn.Sequential)
        norm = cast(nn.GroupNorm, projection[1])
        self.convolution = Convolution(cast(nn.Conv2d, projection[0]), dtype)
        self.groups, self.eps = norm.num_groups, norm.eps
        self.register_buffer("weight", norm.weight.detach().to(dtype, copy=True))
        self.register_buffer("bias", norm.bias.detach().to(dtype, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, d, H', W'], channels last."""
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        return F.group_norm(self.convolution(x), self.groups, weight, bias, self.eps)


class QuerySelection(nn.Module):
    """Scores the tokens and makes boxes of the best; see `Transformer.propose`.

    Args:
        transformer: whose weights are taken.
        dtype: of the tokens; scores and boxes are float32.
    """

    def __init__(self, transformer: Transformer, dtype: torch.dtype) -> None:
        super().__init__()
        exact = torch.float32
        self.num_queries = transformer.tgt_embed.num_embeddings
        self.output = Product(transformer.enc_output, dtype)
        self.norm = Norm(transformer.enc_output_norm, exact)
        self.classes = Product(transformer.enc_out_class_embed, exact)
        self.boxes = FastMLP(transformer.enc_out_bbox_embed, exact)
        # A token that may not propose counts as zeros: what becomes of one, and its best score.
        nothing = self.norm(transformer.enc_output.bias.detach().to(dtype).to(exact))
        self.register_buffer("nothing", nothing)
        self.register_buffer("least", self.classes(nothing[None]).amax())

    def forward(self, memory: Tensor, geometry: Geometry) -> Tensor:
        """[B, T, d] tokens -> boxes before the sigmoid, float32 [B, Q, 4], best token first."""
        tokens = self.norm(self.output(memory).to(torch.float32))
        best = self.classes(tokens).amax(-1)
        if geometry.kept is not None:
            best = best.new_zeros(geometry.invalid.shape).index_copy_(1, geometry.kept, best)
        selected = self.select(torch.where(geometry.invalid, self.get_buffer("least"), best))
        places = selected
        if geometry.kept is not None:  # of padding, whose row is not used: any
            places = torch.searchsorted(geometry.kept, selected).clamp_(max=tokens.shape[1] - 1)
        chosen = torch.where(
            geometry.invalid.gather(1, selected)[..., None],
            self.get_buffer("nothing"),
            gather_rows(tokens, places),
        )
        base = gather_rows(geometry.proposal_logits, selected)
        return self.boxes(chosen) + base  # type: ignore[no-any-return]

    def select(self, best: Tensor) -> Tensor:
        """The best tokens by their highest class logit, [B, S]: int64 [B, Q], best first."""
        return best.topk(min(self.num_queries, best.shape[1]), dim=1).indices
