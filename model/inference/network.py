"""The inference network: a loaded detector, prepared once for one device and one precision.

`Predictor` runs it in the detector's place: the same images and masks in, the same output, up to
rounding. It shares no weights with the detector, cannot be trained, and keeps no names.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.detector import LiteDETR
from model.inference.attention import overwrite_rows
from model.inference.backbone import fold_backbone
from model.inference.geometry import Geometry, GeometryCache
from model.inference.layers import Convolution, Norm, Product
from model.inference.stacks import FastDecoder, FastEncoder, FastMLP
from model.outputs import DetectorOutput
from model.transformer import Transformer, gather_rows


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
        """
        maps = self.backbone(images.to(self.dtype, memory_format=torch.channels_last))
        sources, tokens, shapes = [*maps, maps[-1]], [], []
        for index, projection in enumerate(self.projections):
            projected = projection(sources[index])
            if index >= len(maps):
                sources.append(projected)
            shapes.append((projected.shape[2], projected.shape[3]))
            tokens.append(projected.flatten(2).transpose(1, 2))
        geometry = self.geometry.of(padding_mask, tuple(shapes))
        memory = self.encoder(torch.cat(tokens, 1), geometry)
        reference_logits = self.selection(memory, geometry)
        content = self.get_buffer("content")[: reference_logits.shape[1]]
        content = content.expand(len(reference_logits), -1, -1)
        logits, boxes = self.decoder(content, reference_logits, memory, geometry)
        return DetectorOutput(logits, boxes, memory)


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
        # What becomes of a token of zeros, which stands for those that may not propose.
        nothing = self.norm(transformer.enc_output.bias.detach().to(dtype).to(exact))
        self.register_buffer("nothing", nothing)

    def forward(self, memory: Tensor, geometry: Geometry) -> Tensor:
        """[B, S, d] tokens -> boxes before the sigmoid, float32 [B, Q, 4], best token first."""
        tokens = self.norm(self.output(memory).to(torch.float32))
        tokens = overwrite_rows(tokens, geometry.invalid, self.get_buffer("nothing"))
        selected = self.select(self.classes(tokens))
        base = gather_rows(geometry.proposal_logits, selected)
        return self.boxes(gather_rows(tokens, selected)) + base  # type: ignore[no-any-return]

    def select(self, logits: Tensor) -> Tensor:
        """The best tokens by [B, S, C] class logits: int64 [B, Q], best first."""
        best = logits.amax(-1)
        return best.topk(min(self.num_queries, best.shape[1]), dim=1).indices
