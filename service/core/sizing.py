"""Default numbers of slots, decoders and threads, from the engines, the batch size and the CPUs."""

from __future__ import annotations

# Of each engine: the batch that it runs, the one staged behind it, and the images that wait to
# become the next one.
_BATCHES_PER_ENGINE = 3
_MIN_SLOTS = 64
_MAX_SLOTS = 4096  # as in the settings
_MIN_DECODER_LIMIT = 8
_DECODERS_PER_ENGINE = 2


def default_slots(engines: int, batch_size: int, decoders: int) -> int:
    """Returns how many slots keep all engines and decoders busy.

    Args:
        engines: their number.
        batch_size: maximum images in a batch.
        decoders: number of images that are decoded at once.
    """
    needed = engines * batch_size * _BATCHES_PER_ENGINE + decoders
    return min(_MAX_SLOTS, max(_MIN_SLOTS, needed))


def default_decoders(engines: int, cpus: int) -> int:
    """Returns how many decoders the engines can use: at most one per CPU."""
    return min(cpus, max(_MIN_DECODER_LIMIT, _DECODERS_PER_ENGINE * engines))


def default_engine_threads(engines: int, cpus: int) -> int:
    """Returns an engine's share of the CPUs."""
    return max(1, cpus // engines)
