"""Computes where a detection's attention looks: `model.explanation.Explanation`.

The network runs once with hooks on two layers: the decoder layer asked about, and the encoder's
last layer, which updates every token. The hooks keep their inputs; points and weights are then
computed for one query, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.detections import Detections
from model.explanation import Explanation, SampledPoints, Stage
from model.geometry import cxcywh_to_xyxy
from model.network.decoder import DecoderLayer
from model.network.deformable_attention import DeformableAttention, SampledTokens
from model.network.encoder import EncoderLayer
from model.ops.padding import without_padding
from model.ops.reference import sample_tokens, sampling_locations
from model.postprocess import best_indices, best_pairs, to_detections
from model.predictor import Predictor

_FINEST_STRIDE = 8


class ExplainedImage:
    """One image, detected in with the attention's inputs kept.

    Args:
        predictor: runs the network; `portions` and CUDA graphs are not used.
        image: RGB uint8 [h, w, 3], resized (`model.geometry.resized_size`).
        padded: (H, W) of the shape bucket.
        original_size: (H, W) in pixels of the image before the resize.
        layer: of the decoder, counted from 1; None: the last one.

    Raises:
        ValueError: for a layer that the decoder does not have.
    """

    def __init__(
        self,
        predictor: Predictor,
        image: npt.NDArray[np.uint8],
        padded: tuple[int, int],
        original_size: tuple[int, int],
        layer: int | None = None,
    ) -> None:
        self._config, self._size = predictor.config, original_size
        network = predictor.network
        transformer = network.transformer
        decoder_layers, encoder_layers = transformer.decoder.layers, transformer.encoder.layers
        self.layer = len(decoder_layers) if layer is None else layer
        if not 1 <= self.layer <= len(decoder_layers):
            raise ValueError(
                f"layer {self.layer} does not exist: the decoder has {len(decoder_layers)} layers"
            )
        self._cross = _Recorded(cast(DecoderLayer, decoder_layers[self.layer - 1]).cross_attn)
        self._self = _Recorded(cast(EncoderLayer, encoder_layers[-1]).self_attn)
        self._num_layers = {"decoder": len(decoder_layers), "encoder": len(encoder_layers)}
        try:
            with torch.inference_mode():
                pixels = predictor.assemble([image], padded)
                memory, self._geometry = network.encode(*pixels)
                if transformer.encoder.stack is not None:  # its layers were not called
                    with transformer.encoder.layer_by_layer():
                        network.encode(*pixels)
                proposals = transformer.propose(memory, self._geometry)
                output = network.decode(memory, self._geometry, proposals)
                if transformer.decoder.stack is not None:  # its layers were not called
                    with transformer.decoder.layer_by_layer():
                        network.decode(memory, self._geometry, proposals)
        finally:
            self._cross.stop()
            self._self.stop()
        self._selected = proposals.selected[0]
        self._indices = best_indices(output.pred_logits, self._config.max_detections)[0].tolist()
        with torch.inference_mode():
            rows = best_pairs(output.pred_logits, output.pred_boxes, self._config.max_detections)
        sizes = [original_size]
        (self._rows,) = to_detections(rows.cpu().numpy(), sizes)
        (self.detections,) = to_detections(rows.cpu().numpy(), sizes, self._config.duplicate_iou)

    def closest_to(self, detection: Detections) -> Detections:
        """The detection of this run for one of another run of the image.

        Runs in other precisions or with other kernels differ by rounding, and may order detections
        of nearly equal scores differently.

        Args:
            detection: one row.

        Returns:
            One row of `detections`: of the same label if there is one, with the closest box.
        """
        distances = np.abs(self.detections.boxes_xyxy - detection.boxes_xyxy).sum(axis=1)
        other_label = self.detections.labels != detection.labels[0]
        row = int(np.lexsort((distances, other_label))[0])
        return self.detections.keep(slice(row, row + 1))

    def explain(self, detection: Detections, label_names: Sequence[str]) -> Explanation:
        """Explains one detection.

        Args:
            detection: one row of `detections`.
            label_names: of the model.

        Raises:
            ValueError: for a detection that is not from this image.
        """
        query = self._query_of(detection)
        token = int(self._selected[query])
        row, level = self._row_and_level(token)
        label = int(detection.labels[0])
        xmin, ymin, xmax, ymax = detection.boxes_xyxy[0].tolist()
        levels = self._config.num_feature_levels
        return Explanation(
            label=label_names[label] if label < len(label_names) else str(label),
            score=float(detection.scores[0]),
            box_xyxy=(xmin, ymin, xmax, ymax),
            query=query,
            token_level=level,
            strides=tuple(_FINEST_STRIDE << number for number in range(levels)),
            decoder=self._points(self._cross, query, "decoder", self.layer),
            encoder=self._points(self._self, row, "encoder", self._num_layers["encoder"]),
        )

    def _query_of(self, detection: Detections) -> int:
        same = (self._rows.scores == detection.scores[0]) & (
            self._rows.labels == detection.labels[0]
        )
        same &= (self._rows.boxes_xyxy == detection.boxes_xyxy[0]).all(-1)
        if not same.any():
            raise ValueError("the detection is not one of this image")
        return int(self._indices[int(same.nonzero()[0][0])] // self._config.num_classes)

    def _row_and_level(self, token: int) -> tuple[int, int]:
        """The row of a token in the memory, and its level."""
        kept = self._geometry.kept
        # A token of padding, which is selected only if there are too few others, has no row.
        row = token if kept is None else min(int(torch.searchsorted(kept, token)), len(kept) - 1)
        start = 0
        for level, (height, width) in enumerate(self._geometry.spatial_shapes):
            start += height * width
            if row < start:
                return row, level
        raise AssertionError("a token of no level")

    def _points(self, recorded: _Recorded, row: int, stage: Stage, layer: int) -> SampledPoints:
        attention = recorded.attention
        query = recorded.query[:, row : row + 1]
        references = recorded.reference_points[:, row : row + 1].double()
        places, weights = attention_of(attention, query, references, recorded.tokens)
        shares = self._geometry.box_ratios[0, 0].double()  # [L, 4], unpadded (w, h, w, h)
        height, width = self._size
        pixels = torch.tensor([width, height, width, height], dtype=torch.float64)
        shares, references, places = shares.cpu(), references.cpu(), places.cpu()
        xy = (places[0, 0] / shares[:, None, :2]).clamp(-1, 2) * pixels[:2]
        sides = references.shape[-1]
        reference = references[0, 0, 0] / shares[0, :sides] * pixels[:sides]
        corners = reference.numpy()
        if len(corners) == 4:  # noqa: PLR2004 - cxcywh
            corners = cxcywh_to_xyxy(corners)
        return SampledPoints(
            stage=stage,
            layer=layer,
            num_layers=self._num_layers[stage],
            key_aware=attention.key_aware,
            reference=tuple(float(value) for value in corners),
            xy=xy.numpy(),
            weights=weights[0, 0].cpu().numpy(),
        )


def attention_of(
    attention: DeformableAttention, query: Tensor, references: Tensor, tokens: SampledTokens
) -> tuple[Tensor, Tensor]:
    """Where queries sample, and with which weights.

    Args:
        attention: in any form.
        query: [B, Q, d], as `DeformableAttention.forward` gets it.
        references: [B, Q, L, 2 or 4], likewise.
        tokens: likewise.

    Returns:
        Normalised (x, y) [B, Q, M, L, P, 2], and weights [B, Q, M, L, P] that sum to 1 over the
        points of a head; float64.
    """
    with torch.inference_mode():
        offsets, weigher = attention.sample(query)
        places = sampling_locations(tokens.spatial_shapes, references, offsets.double())
        if attention.key_aware:
            keys = tokens.value if tokens.key is None else tokens.key
            if tokens.valid_ratios is not None:
                keys = without_padding(keys, tokens.spatial_shapes, tokens.valid_ratios)
            samples = sample_tokens(keys.double(), tokens.spatial_shapes, places)
            batch, count, heads, channels = weigher.shape
            samples = samples.view(batch, heads, channels, count, -1)
            scores = torch.einsum("bqmd,bmdqn->bqmn", weigher.double(), samples) * channels**-0.5
        else:
            scores = weigher.double()
        return places, scores.softmax(-1).view(places.shape[:-1])


class _Recorded:
    """The inputs of the last call of an attention.

    Args:
        attention: whose calls are recorded until `stop`.
    """

    query: Tensor
    reference_points: Tensor
    tokens: SampledTokens

    def __init__(self, attention: DeformableAttention) -> None:
        self.attention = attention
        self._hook = attention.register_forward_pre_hook(self._record)

    def _record(
        self, _module: nn.Module, arguments: tuple[Tensor, Tensor, SampledTokens, Tensor]
    ) -> None:
        self.query, self.reference_points, self.tokens, _ = arguments

    def stop(self) -> None:
        """Ends the recording."""
        self._hook.remove()
