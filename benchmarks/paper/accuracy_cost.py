"""The cost of the arms: GFLOPs by the project's counter, and time by the path that serves."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.accuracy_arms import ARMS, start
from benchmarks.paper.accuracy_pool import SIZE
from model.config import ModelConfig
from model.network.complexity import count
from model.predictor import Predictor
from model.weights.checkpoint import save_checkpoint
from service.engine.load import load_predictor

_LABELS = ("one", "two", "three", "four", "five")
_MS = 1000


@functools.cache
def gflops(letter: str, base: ModelConfig) -> dict[str, float]:
    """Billions of multiply-accumulates of an arm's encoder, and of all of it."""
    found = count(ARMS[letter].config(base, len(_LABELS)), [SIZE])
    return {"encoder": found.parts["encoder"], "total": found.total}


def latency(letters: str, base: ModelConfig, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one image in each arm, on one thread; the arms take turns.

    Args:
        letters: of the arms.
        base: the architecture.
        rounds: images of each arm; the medians count.

    Returns:
        Wall and CPU milliseconds by arm. The weights are random: time does not depend on them.
    """
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    times: dict[str, list[tuple[float, float]]] = {letter: [] for letter in letters}
    with tempfile.TemporaryDirectory() as folder:
        predictors = {
            letter: _predictor(letter, base, Path(folder) / f"{letter}.safetensors")
            for letter in letters
        }
        for _ in range(rounds + 1):  # the first one warms up
            for letter, predictor in predictors.items():
                times[letter].append(_time(predictor, image))
    return {letter: _medians(found[1:]) for letter, found in times.items()}


def _predictor(letter: str, base: ModelConfig, path: Path) -> Predictor:
    detector = start(ARMS[letter], base, _LABELS, seed=1)
    save_checkpoint(
        path, detector.state_dict(), detector.config, _LABELS, score_threshold=0.4, name=letter
    )
    return load_predictor(path, "cpu", threads=1)[0]


def _time(predictor: Predictor, image: Any) -> tuple[float, float]:
    """Wall and CPU seconds of one image."""
    wall, cpu = time.perf_counter(), time.process_time()
    predictor.predict([image], SIZE, [SIZE])
    return time.perf_counter() - wall, time.process_time() - cpu


def _medians(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    walls, cpus = zip(*times, strict=True)
    return {
        "wall_ms": statistics.median(walls) * _MS,
        "cpu_ms": statistics.median(cpus) * _MS,
    }
