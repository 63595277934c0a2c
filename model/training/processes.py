"""Training in several processes, one per GPU, started by torchrun: what they exchange.

Every process trains on its own images with equal weights; gradients and divisors of the losses are
averaged over the processes, so that N processes of batch B learn as one of batch N x B does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from shlex import quote

import torch
from torch import distributed, nn

from model.training.errors import ProcessLost
from model.training.out_of_memory import is_out_of_memory

_SHOWN_CAUSE = 60  # characters
_LONGEST_WAIT = timedelta(hours=12)  # for the first process, which validates and saves


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: number of this process; 0 reports, validates and saves.
        count: of all processes.
        device: of the exchanged numbers.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process reports, validates and saves."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """Returns the mean of a number over the processes."""
        return value if self.count == 1 else self._sum(value) / self.count

    def any(self, flag: bool) -> bool:
        """Whether a condition holds in any process."""
        return flag if self.count == 1 else self._sum(float(flag)) > 0

    def largest(self, value: float) -> float:
        """Returns the largest value of a number over the processes."""
        if self.count == 1:
            return value
        return self._reduced(value, distributed.ReduceOp.MAX)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces the gradients by their means; a missing one counts as zeros."""
        if self.count == 1:
            return
        owners = list(parameters)
        for owner in owners:
            if owner.grad is None:
                owner.grad = torch.zeros_like(owner)
        gradients = [owner.grad for owner in owners if owner.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with _naming_lost_processes():
            distributed.all_reduce(flat)
        flat /= self.count
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
            start += gradient.numel()

    @torch.no_grad()
    def share_weights(self, module: nn.Module) -> None:
        """Copies the first process's parameters and buffers to the others."""
        if self.count > 1:
            with _naming_lost_processes():
                for tensor in module.state_dict().values():
                    distributed.broadcast(tensor, 0)

    def _sum(self, value: float) -> float:
        return self._reduced(value, distributed.ReduceOp.SUM)

    def _reduced(self, value: float, operation: distributed.ReduceOp.RedOpType) -> float:
        with _naming_lost_processes():
            shared = torch.tensor(value, dtype=torch.float64, device=self.device)
            distributed.all_reduce(shared, operation)
            return float(shared)


@contextmanager
def _naming_lost_processes() -> Iterator[None]:
    """Re-raises errors of an exchange, which name addresses, as ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        cause = (text.partition("] ")[2] or text)[:_SHOWN_CAUSE]  # without the place in gloo's code
        raise ProcessLost(
            "another process of this run has ended: see its message, or the exit status that "
            f"torchrun prints ({cause})"
        ) from error


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first_process() -> bool:
    """Whether this process reports and saves, before or after it has joined the others."""
    return not started_by_torchrun() or int(os.environ.get("RANK", "0")) == 0


def command_to_continue(folder: Path) -> str:
    """Returns the command that continues a run, in as many processes as it has now."""
    program = "lite-detr"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        several = count != int(os.environ.get("WORLD_SIZE", "1"))
        nodes = "[the same options for the other machines] " if several else ""
        program = f"torchrun {nodes}--nproc-per-node {count} -m service"
    return f"{program} train --resume {quote(str(folder))}"


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun started; yields a single one without it.

    Args:
        device: of the training. Of a GPU without a number, each process takes its own.
    """
    if not started_by_torchrun():
        yield Processes()
        return
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.set_device(local_device(device))
    distributed.init_process_group("nccl" if is_gpu else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Processes(
            distributed.get_rank(),
            distributed.get_world_size(),
            str(local_device(device)) if is_gpu else "cpu",
        )
    finally:
        distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Returns the GPU of this process if torchrun started several, otherwise the device itself."""
    if device.type == "cuda" and started_by_torchrun():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device
