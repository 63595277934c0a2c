"""Several processes train as one does with the batches of all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.training.batches import BatchPlanner
from model.training.processes import Processes
from model.weights.info import read_model_info
from tests.model.training.tiny import tiny_detector, tiny_options, write_cache
from tests.support.repository import ROOT

_WORKER = "tests.model.training.torchrun_worker"


def test_processes_share_the_batches_of_one() -> None:
    whole = BatchPlanner(tiny_options(Path("x"), batch_size=4), 40, 3, 0, lambda _: False)
    half = tiny_options(Path("x"), batch_size=2)
    parts = [
        BatchPlanner(half, 40, 3, 0, lambda _: False, rank=rank, processes=2) for rank in (0, 1)
    ]
    assert len(whole) == len(parts[0]) == len(parts[1])
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch == first + second


def test_single_process_exchanges_nothing() -> None:
    alone = Processes()
    assert alone.is_first
    assert (alone.mean(3.0), alone.any(True), alone.largest(2.0)) == (3.0, True, 2.0)


@pytest.mark.slow
def test_two_processes_learn_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", 8)
    one = [sys.executable, "-m", _WORKER, str(cache), str(tmp_path / "one"), "4"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = [sys.executable, *torchrun, "-m", _WORKER, str(cache), str(tmp_path / "two"), "2"]
    for command in (one, two):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    alone = torch.load(tmp_path / "one" / "weights_0.pt")
    ranks = [torch.load(tmp_path / "two" / f"weights_{rank}.pt") for rank in (0, 1)]
    started = tiny_detector().state_dict()
    for name, tensor in ranks[0].items():
        assert torch.equal(tensor, ranks[1][name]), name
        moved, off = alone[name] - started[name], tensor - alone[name]
        assert off.float().norm() <= 1e-3 * moved.float().norm() + 1e-5, name
    changed = "backbone.0.body.conv_stem.weight"
    assert (alone[changed] - started[changed]).norm() > 1e-4
    rows = (tmp_path / "two" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1
    info = read_model_info(tmp_path / "two" / "model.safetensors")
    assert info.description == "trained for 1 iteration of 4 images"
