"""The learning rate schedule: warm-up, then cosine, steps or a constant, by iterations or time."""

from __future__ import annotations

import math

from model.training.options import TrainOptions

_STEP_FACTOR = 0.1


def run_progress(options: TrainOptions, iteration: int, elapsed_seconds: float) -> float:
    """Returns the progress of the run, 0..1.

    With a time limit it is the larger of both shares, so that the schedule is completed on a slow
    machine too.
    """
    progress = iteration / options.max_iterations
    if options.max_minutes is not None:
        progress = max(progress, elapsed_seconds / (60 * options.max_minutes))
    return min(progress, 1.0)


def warmup_factor(options: TrainOptions, iteration: int, progress: float) -> float:
    """Returns the factor of the warm-up at an iteration (0-based), 0..1.

    The warm-up ends after `warmup_iterations` or after `warmup_share` of the run, whichever is
    first: otherwise a short run would never reach its learning rate.
    """
    by_iterations = (iteration + 1) / max(options.warmup_iterations, 1)
    by_share = progress / options.warmup_share if options.warmup_share > 0 else 1.0
    return min(1.0, max(by_iterations, by_share))


def learning_rate_factor(options: TrainOptions, iteration: int, progress: float) -> float:
    """Returns the factor of the base learning rates at an iteration (0-based)."""
    warmup = warmup_factor(options, iteration, progress)
    if options.schedule == "step":
        drops = sum(progress >= milestone for milestone in options.step_milestones)
        return warmup * _STEP_FACTOR**drops
    if options.schedule == "flat":
        begin = 1 - options.anneal_share
        progress = (progress - begin) / options.anneal_share if progress > begin else 0.0
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return warmup * (options.final_lr_factor + (1 - options.final_lr_factor) * cosine)
