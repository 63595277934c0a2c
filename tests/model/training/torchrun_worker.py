"""Started by torchrun in test_processes.py: trains a tiny detector, saves its weights.

python -m tests.model.training.torchrun_worker CACHE OUTPUT BATCH_SIZE
"""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from model.training import batches
from model.training.processes import joined_processes
from model.training.report import Reporter
from model.training.sources import CacheSource
from model.training.trainer import Trainer
from tests.model.training.tiny import LABELS, tiny_detector, tiny_options


def main(cache: Path, output: Path, batch_size: int) -> None:
    """Trains one iteration and saves the weights; later ones may choose other queries in ties."""
    torch.set_num_threads(1)
    # Images of several sizes would have other padding in a batch of another size.
    vars(batches)["augment"] = lambda image, *_: image
    options = tiny_options(output, batch_size=batch_size, max_iterations=1, denoising_queries=0)
    output.mkdir(parents=True, exist_ok=True)
    with joined_processes(torch.device("cpu")) as processes:
        reporter = Reporter(output, Console(file=io.StringIO()), silent=not processes.is_first)
        trainer = Trainer(
            tiny_detector(), CacheSource(cache, LABELS), LABELS, options, reporter,
            processes=processes,
        )  # fmt: skip
        # AdamW would turn rounding of gradients near zero into whole steps.
        groups = [{"params": list(trainer.detector.parameters()), "base_lr": 0.1}]
        descent = torch.optim.SGD(groups, lr=0.1)
        run = replace(trainer.run_state, optimizer=descent)
        trainer.run_state = trainer._steps._run = run
        trainer.run()
        state = trainer.detector.state_dict()
        torch.save(state, output / f"weights_{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
