"""A run that a signal stops: saved, with the exit status of the signal, in every process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from model.training import loop
from model.training.events import Callback
from model.training.loop import STATE_FILE
from model.training.processes import Processes
from model.training.report import Reporter
from model.training.sources import CacheSource
from model.training.stopping import TrainingStopped
from model.training.trainer import Trainer
from service.cli import main
from tests.model.training.tiny import LABELS, tiny_detector, tiny_options, write_cache

STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SIGNALS = pytest.mark.parametrize("number", list(STATUSES), ids=lambda number: number.name)


@SIGNALS
def test_the_command_ends_with_the_status_of_the_signal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    def stop(*_arguments: object) -> None:
        raise TrainingStopped(number, tmp_path / "model.safetensors")

    monkeypatch.setattr(loop, "train", stop)
    assert main(["train", "--output", str(tmp_path)]) == STATUSES[number]
    assert f"serve it: lite-detr serve --model {tmp_path}" in capsys.readouterr().err


class Interrupting(Callback):
    """Sends this process SIGINT once, at the first row of losses, as Ctrl-C does."""

    def on_row(self, iteration: int, values: Any) -> None:
        if iteration == 1:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow  # trains the default network
def test_a_run_stopped_by_ctrl_c_names_the_command_that_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    cache, output = write_cache(tmp_path / "cache"), tmp_path / "run"
    command = ["train", "--cache", str(cache), "--output", str(output), "--device", "cpu"]
    command += ["--callbacks", f"{__name__}:Interrupting", "--log-every", "1", "--workers", "0"]
    command += ["--sizes", "96", "--batch-size", "1", "--max-iterations", "50"]
    try:
        assert main(command) == 130
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert f"to continue: lite-detr train --resume {output}" in printed.out + printed.err
    assert (output / STATE_FILE).is_file()
    assert (output / "model.safetensors").is_file()


class _OtherGotTheSignal(Processes):
    """The second of two processes; the first one has got SIGINT."""

    def __init__(self) -> None:
        super().__init__(rank=1, count=1)

    def any(self, flag: bool) -> bool:
        return True

    def largest(self, value: float) -> float:
        return max(value, float(signal.SIGINT))


def test_processes_that_got_no_signal_end_with_its_status_too(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    trainer = Trainer(
        tiny_detector(),
        CacheSource(write_cache(tmp_path / "cache"), LABELS),
        LABELS,
        tiny_options(tmp_path / "run"),
        Reporter(tmp_path / "run", silent=True),
        processes=_OtherGotTheSignal(),
    )
    with pytest.raises(TrainingStopped) as stopped:
        trainer.run()
    assert stopped.value.exit_status == 130
    assert not (tmp_path / "run" / STATE_FILE).exists()  # the first process saves
