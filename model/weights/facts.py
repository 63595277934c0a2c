"""Derives the architecture of a network from the shapes of its state dict (torch-free).

Used before a network is built: a config that contradicts its tensors is refused before memory is
allocated for it, and an official checkpoint, which contains no config, is recognised. MODEL.md,
section 1, lists what can be derived from weights and what cannot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from model.config import ModelConfig
from model.weights.header import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

_ENCODER = "transformer.encoder.layers"
_DECODER = "transformer.decoder.layers"


@dataclass(frozen=True)
class ArchitectureFacts:
    """The fields of `ModelConfig` that follow from shapes, under the same names."""

    refined_positions: bool
    learned_content: bool
    num_classes: int
    d_model: int
    num_feature_levels: int
    interleaved: bool
    encoder_layers: int
    encoder_blocks: int | None  # None if the encoder is not interleaved: unknown
    encoder_feedforward: int
    key_aware: bool
    key_aware_decoder: bool | None  # None if the encoder is not key-aware: the decoder is not
    separate_keys: bool
    decoder_layers: int
    decoder_feedforward: int
    num_queries: int | None  # None if the queries' content does not tell it
    learned_queries: int | None  # rows of learned content; None if there is none
    encoder_offsets: int  # outputs of an encoder layer's sampling_offsets
    decoder_offsets: int

    @classmethod
    def of(cls, shapes: Shapes, path: Path) -> ArchitectureFacts:
        """Derives the facts from names and shapes.

        Args:
            shapes: name -> shape, under official names.
            path: their file, named in errors.

        Raises:
            CheckpointError: if a required tensor is missing or of another rank, or layers are of
                kinds that no config describes.
        """
        encoder_layers, decoder_layers = _depth(shapes, _ENCODER), _depth(shapes, _DECODER)
        blocks = _block_count(shapes, encoder_layers, path)
        plain = _plain_attention(shapes, _ENCODER, "self_attn", encoder_layers, path)
        plain_decoder = _plain_attention(shapes, _DECODER, "cross_attn", decoder_layers, path)
        if plain and not plain_decoder:
            raise CheckpointError(
                path,
                "has key-aware attention in the decoder only, which is not supported",
            )
        level_embed = _shape(shapes, "transformer.level_embed", 2, path)
        refined = "transformer.pos_trans.weight" not in shapes
        learned = None
        if refined:
            learned = _shape(shapes, "transformer.tgt_embed.weight", 2, path)[0]
        elif "query_embed.weight" in shapes:
            learned = _shape(shapes, "query_embed.weight", 2, path)[0]
        return cls(
            num_classes=_shape(shapes, "class_embed.0.weight", 2, path)[0],
            d_model=level_embed[1],
            num_feature_levels=level_embed[0],
            interleaved=blocks > 0,
            encoder_layers=encoder_layers,
            encoder_blocks=blocks or None,
            encoder_feedforward=_shape(shapes, f"{_ENCODER}.0.linear1.weight", 2, path)[0],
            key_aware=not plain,
            key_aware_decoder=None if plain else not plain_decoder,
            separate_keys=f"{_ENCODER}.0.self_attn.key_proj.weight" in shapes,
            decoder_layers=decoder_layers,
            decoder_feedforward=_shape(shapes, f"{_DECODER}.0.linear1.weight", 2, path)[0],
            refined_positions=refined,
            learned_content=learned is not None,
            num_queries=learned if refined else None,
            learned_queries=learned,
            encoder_offsets=_offsets(shapes, f"{_ENCODER}.0.self_attn", path),
            decoder_offsets=_offsets(shapes, f"{_DECODER}.0.cross_attn", path),
        )

    def contradictions(self, config: ModelConfig) -> list[str]:
        """Returns the differences between these facts and a config, one phrase per field."""
        levels = 1 if config.same_loc else config.num_feature_levels
        per_point = config.num_heads * 2
        encoder_offsets = levels * config.encoder_points * per_point
        decoder_offsets = config.num_feature_levels * config.decoder_points * per_point
        differing = [
            f"{field.name} is {getattr(self, field.name)} in the weights, "
            f"not {getattr(config, field.name)}"
            for field in fields(self)
            if hasattr(config, field.name)
            and getattr(self, field.name) not in (None, getattr(config, field.name))
        ]
        learned_queries = config.num_queries + config.one_to_many_queries
        if self.learned_queries not in (None, learned_queries) and self.num_queries is None:
            differing.append(
                f"the learned queries are {self.learned_queries} in the weights, not "
                f"{learned_queries} (num_queries, one_to_many_queries)"
            )
        if self.encoder_offsets != encoder_offsets:
            differing.append(
                f"the encoder's sampling offsets are {self.encoder_offsets} in the weights, not "
                f"{encoder_offsets} (num_heads, encoder_points, same_loc)"
            )
        if self.decoder_offsets != decoder_offsets:
            differing.append(
                f"the decoder's sampling offsets are {self.decoder_offsets} in the weights, not "
                f"{decoder_offsets} (num_heads, decoder_points)"
            )
        return differing


def _depth(shapes: Shapes, stem: str) -> int:
    """Returns the number of layers under a prefix: `stem.0`, `stem.1`, ..."""
    pattern = re.compile(rf"{re.escape(stem)}\.(\d+)\.")
    return len({match[1] for name in shapes if (match := pattern.match(name))})


def _layers_with(shapes: Shapes, suffix: str) -> set[str]:
    """Returns the encoder and decoder layers that have a parameter of this name."""
    pattern = re.compile(rf"(transformer\.(?:en|de)coder\.layers\.\d+)\.{suffix}")
    return {match[1] for name in shapes if (match := pattern.fullmatch(name))}


def _plain_attention(shapes: Shapes, stem: str, name: str, layers: int, path: Path) -> bool:
    """Whether all layers of a stack have plain attention; otherwise, none has."""
    pattern = re.compile(rf"{re.escape(stem)}\.\d+\.{name}\.attention_weights\.weight")
    plain = sum(pattern.fullmatch(tensor) is not None for tensor in shapes)
    if plain not in (0, layers):
        raise CheckpointError(
            path, f"mixes key-aware and plain attention in {stem}, which is not supported"
        )
    return plain > 0


def _block_count(shapes: Shapes, encoder_layers: int, path: Path) -> int:
    """Returns the blocks of an interleaved encoder, by the small FFN of their last layers."""
    found = _layers_with(shapes, r"linear12\.weight")
    last = sorted(int(layer.rsplit(".", 1)[1]) for layer in found)
    if not last:
        return 0
    per_block = encoder_layers // len(last)
    if last != [index * per_block + per_block - 1 for index in range(len(last))] or (
        encoder_layers % len(last)
    ):
        raise CheckpointError(
            path, f"its encoder's blocks end at layers {last}, which is no regular interleaving"
        )
    return len(last)


def _offsets(shapes: Shapes, attention: str, path: Path) -> int:
    """Returns the outputs of a sampling_offsets layer: heads x levels x points x 2."""
    return _shape(shapes, f"{attention}.sampling_offsets.weight", 2, path)[0]


def _shape(shapes: Shapes, name: str, rank: int, path: Path) -> tuple[int, ...]:
    """Returns the shape of a required tensor."""
    if name not in shapes:
        raise CheckpointError(path, f"tensors are missing: {name}")
    if len(shapes[name]) != rank:
        raise CheckpointError(path, f"{name} is {list(shapes[name])}, which has not rank {rank}")
    return shapes[name]
