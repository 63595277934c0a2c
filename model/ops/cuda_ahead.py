"""Compiles GPU kernels ahead of time: `python -m model.ops.cuda_ahead --architectures "80 90"`.

The Dockerfile of the CUDA image runs this once, on a machine without a GPU. It writes one file for
each kernel that a variant of the model calls, number type and architecture to `compiled/`, where
`nvrtc.py` looks before it compiles; with --training also those of the backward pass. Other kernels
(of a model with other sizes) are compiled at their first call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.config import VARIANTS, ModelConfig
from model.native.library import BuildError
from model.native.prebuilt import DIRECTORY
from model.ops.cuda_call import splits_for
from model.ops.cuda_norm import NormVariant
from model.ops.nvrtc import TYPES, Kernel, Kind, Variant, machine_code


def variants_of(config: ModelConfig, *, training: bool = False) -> set[Variant]:
    """The kernels of attention that a network of this architecture calls, for every number type.

    Args:
        config: the architecture.
        training: those of the backward pass, too.
    """
    levels = config.num_feature_levels
    encoder: Kind = "separate_keys" if config.separate_keys else "shared_keys"
    decoder: Kind = "shared_keys"
    if not config.key_aware:
        encoder = "plain"
    if not (config.key_aware and config.key_aware_decoder):
        decoder = "plain"
    # kind, points, size of a reference (a point, a box), levels that have offsets of their own
    calls: tuple[tuple[Kind, int, int, int], ...] = (
        (encoder, config.encoder_points, 2, 1 if config.same_loc else levels),
        (decoder, config.decoder_points, 4, levels),
    )
    channels = config.d_model // config.num_heads
    few = splits_for(0, channels)
    # Small images have as few tokens as a decoder has queries.
    splits = {encoder_call: {1, few} for encoder_call in calls[:1]}
    splits[calls[1]] = {splits_for(config.num_queries, channels)} | splits.get(calls[1], set())
    forward = {
        Variant(
            value_type,
            offset_type,
            kind,
            channels,
            config.num_heads,
            levels,
            points,
            reference_size,
            offset_levels,
            splits=split,
        )
        for kind, points, reference_size, offset_levels in calls
        for split in splits[kind, points, reference_size, offset_levels]
        for value_type in TYPES
        for offset_type in {value_type, torch.float32}
    }
    backward = {replace(variant, splits=1, backward=True) for variant in forward}
    return forward | backward if training else forward


def norms_of(config: ModelConfig) -> set[NormVariant]:
    """The kernels of its layers that add and normalise, for every number type."""
    return {NormVariant(value_type, config.d_model) for value_type in TYPES}


def build_all(
    configs: Iterable[ModelConfig],
    architectures: Sequence[int],
    directory: Path,
    *,
    training: bool = False,
) -> list[Path]:
    """Compiles every kernel of these models for every architecture.

    Args:
        configs: of the models.
        architectures: such as 90, for compute capability 9.0.
        directory: where the files are written.
        training: the kernels of the backward pass, too.

    Returns:
        The files.

    Raises:
        BuildError: without NVRTC, or for a kernel or an architecture that it does not support.
    """
    wanted: set[Kernel] = set()
    for config in configs:
        wanted |= variants_of(config, training=training) | norms_of(config)
    directory.mkdir(parents=True, exist_ok=True)
    for architecture in architectures:
        for variant in sorted(wanted, key=repr):
            machine_code(variant, divmod(architecture, 10), directory, cache_required=True)
    files = sorted(directory.glob("*.cubin"))
    for file in files:
        file.chmod(0o644)  # built by one user, loaded by another
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds all kernels and prints how many; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compile the GPU kernels of all variants.")
    parser.add_argument("--architectures", required=True, help='numbers with spaces: "80 90"')
    parser.add_argument("--training", action="store_true", help="the backward pass, too")
    given = parser.parse_args(arguments)
    architectures = [int(number) for number in given.architectures.split()]
    try:
        files = build_all(VARIANTS.values(), architectures, DIRECTORY, training=given.training)
    except BuildError as error:
        print(f"cannot compile the GPU kernels ahead: {error}", file=sys.stderr)
        return 1
    print(f"{len(files)} kernels for {given.architectures} in {DIRECTORY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
