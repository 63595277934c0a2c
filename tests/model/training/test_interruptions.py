"""Runs that are stopped at odd moments, lose a process, their disk or their terminal."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import distributed

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.evaluation import run
from model.training import charts, loop, processes
from model.training.errors import ProcessLost
from model.training.options import TrainOptions
from model.training.processes import Processes, command_to_continue, joined_processes
from model.training.report import Pace, Reporter, read_log
from model.training.resume import naming_saved_state
from model.training.run_folder import check_run_folder, delete_unfinished_files
from model.training.run_writer import RunWriter
from model.training.sources import CacheSource
from model.training.state import Position, TrainingStateError, read_position
from model.training.steps import Steps
from model.training.stopping import (
    Interrupted,
    StopRequest,
    TrainingStopped,
    interrupted_by_signals,
)
from model.training.trainer import Trainer
from model.training.validation import ValidationAbandoned, ValidationSet, Validator
from service.cli import main
from tests.model.training.tiny import LABELS, tiny_detector, tiny_options, write_cache
from tests.support.repository import ROOT

STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SIGNALS = pytest.mark.parametrize("number", list(STATUSES), ids=lambda number: number.name)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def hangup_is_not_ignored() -> Iterator[None]:
    """It is where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"), 2)


def _trainer(options: TrainOptions, cache: Path, **parts: Any) -> Trainer:
    options.output.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(options.output, Console(file=io.StringIO()))
    return Trainer(tiny_detector(), CacheSource(cache, LABELS), LABELS, options, reporter, **parts)


def _validation(folder: Path) -> ValidationSet:
    boxes = (AnnotatedBox(1, (10, 10, 30, 30), 900),)
    images = (ImageAnnotations(1, "0.png", boxes),)
    return ValidationSet(GroundTruth(images, dict(enumerate(LABELS, 1))), folder, "an image")


@SIGNALS
def test_signal_before_the_training_ends_the_command_with_a_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(loop, "train", lambda _options: signal.raise_signal(number))
    assert main(["train", "--output", str(tmp_path)]) == STATUSES[number]
    assert f"stopped by {number.name}: nothing was trained" in capsys.readouterr().err
    assert signal.getsignal(number) is before


@SIGNALS
def test_second_signal_ends_the_command_and_names_the_saved_state(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    def train(_options: TrainOptions) -> None:
        with naming_saved_state(tmp_path), StopRequest() as stop:
            signal.raise_signal(number)
            assert stop.number == number
            signal.raise_signal(number)

    (tmp_path / "last.pt").touch()
    monkeypatch.setattr(loop, "train", train)
    assert main(["train", "--output", str(tmp_path)]) == STATUSES[number]
    printed = capsys.readouterr().err
    assert f"stopped by {number.name}\n" in printed
    assert f"to continue from the last saved state: lite-detr train --resume {tmp_path}" in printed


def test_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals(), StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_during_a_validation_ends_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> Any:
        stops.append(True)
        yield from ()

    stops: list[bool] = []
    monkeypatch.setattr(run, "image_batches", read)
    detector, device = tiny_detector(), torch.device("cpu")
    validator = Validator(_validation(cache), LABELS, device, 1.0, lambda: bool(stops))
    with pytest.raises(ValidationAbandoned):
        validator.validate(detector, detector.state_dict())
    assert stops


class _Signalling:
    """Sends this process SIGTERM in the n-th validation, and goes on with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        validate, self._left = Validator.validate, number

        def signalled(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                signal.raise_signal(signal.SIGTERM)
            return validate(*arguments, **named)

        monkeypatch.setattr(Validator, "validate", signalled)


@pytest.mark.slow
def test_run_stopped_in_a_validation_is_saved_and_goes_on_with_it_when_resumed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tiny_options(tmp_path, max_iterations=1, sample_pictures=0, resume=True)
    # The only validation of the run; then it is made again, and the one for the report is stopped.
    for moment, validated in ((1, -1), (2, 1)):
        with monkeypatch.context() as patch:
            _Signalling(patch, moment)
            with pytest.raises(TrainingStopped) as stopped:
                _trainer(options, cache, validation=_validation(cache)).run()
        assert stopped.value.exit_status == 143
        assert read_position(tmp_path / "last.pt").validated_iteration == validated
        assert not (tmp_path / "report.md").exists()
    _trainer(options, cache, validation=_validation(cache)).run()
    assert (tmp_path / "report.md").exists()
    assert [row.get("val_ap") is not None for row in read_log(tmp_path)] == [False, True]


def test_exchange_with_a_process_that_has_ended_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:15766.")

    monkeypatch.setattr(distributed, "all_reduce", fail)
    monkeypatch.setattr(distributed, "broadcast", fail)
    two = Processes(0, 2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    for exchange in (
        lambda: two.any(True),
        lambda: two.largest(1.0),
        lambda: two.average_gradients([parameter]),
        lambda: two.share_weights(torch.nn.Linear(1, 1)),
    ):
        with pytest.raises(ProcessLost, match=r"this run has ended: .*\(Connection closed by"):
            exchange()


def test_run_that_loses_a_process_is_saved(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_steps: Steps, _batch: Any, place: Position) -> None:
        if place.iteration == 1:
            raise ProcessLost("another process of this run has ended")
        place.iteration += 1

    monkeypatch.setattr(Steps, "train_on", lose)
    options = tiny_options(tmp_path, max_iterations=3, batch_size=1, sample_pictures=0)
    with pytest.raises(ProcessLost) as lost:
        _trainer(options, cache).run()
    assert f"lite-detr train --resume {tmp_path}" in lost.value.__notes__[0]
    assert read_position(tmp_path / "last.pt").iteration == 1


_OTHER = f"""
import os, torch
from {processes.__name__} import joined_processes
with joined_processes(torch.device("cpu")) as processes:
    processes.any(False)
    os._exit(1)
"""


@pytest.mark.slow  # imports torch in another process
def test_process_that_dies_is_noticed_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**common, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    env = {**os.environ, "RANK": "1"}
    with (
        subprocess.Popen([sys.executable, "-c", _OTHER], cwd=ROOT, env=env) as other,
        joined_processes(torch.device("cpu")) as two,
    ):
        two.any(False)
        other.wait()
        with pytest.raises(ProcessLost):
            two.any(False)


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "lite-detr train --resume 'my run'"),
        (TORCHRUN, "torchrun --nproc-per-node 2 -m service train --resume 'my run'"),
        (
            {**TORCHRUN, "WORLD_SIZE": "4"},
            "torchrun [the same options for the other machines] --nproc-per-node 2 -m service "
            "train --resume 'my run'",
        ),
    ],
    ids=["one", "two", "two of four"],
)
def test_run_is_continued_in_as_many_processes(
    environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert command_to_continue(Path("my run")) == command


def test_run_that_is_killed_in_the_first_step_can_be_resumed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise Interrupted(signal.SIGTERM)  # after which nothing is saved

    def step(_steps: Steps, _batch: Any, place: Position) -> None:
        place.iteration += 1

    options = tiny_options(tmp_path, resume=True, max_iterations=1, sample_pictures=0)
    monkeypatch.setattr(Steps, "train_on", kill)
    with pytest.raises(Interrupted) as stop:
        _trainer(options, cache).run()
    assert "to continue from the last saved state" in stop.value.__notes__[0]
    check_run_folder(options)
    assert read_position(tmp_path / "last.pt").iteration == 0
    monkeypatch.setattr(Steps, "train_on", step)
    _trainer(options, cache).run()
    assert read_position(tmp_path / "last.pt").iteration == 1


def test_run_whose_first_state_cannot_be_saved_leaves_no_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise TrainingStateError("last.pt cannot be written: No space left on device")

    monkeypatch.setattr(RunWriter, "save_state", fail)
    options = tiny_options(tmp_path, sample_pictures=0)
    with pytest.raises(TrainingStateError):
        _trainer(options, cache).run()
    assert not list(tmp_path.iterdir())
    check_run_folder(options)


def test_unfinished_files_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    unfinished = (
        "last.pt.part",
        ".last.pt.77.part",
        ".model.safetensors.77.part",
        ".log.jsonl.77.part",
    )
    for name in (*unfinished, "last.pt", "mine.part"):
        (tmp_path / name).touch()
    delete_unfinished_files(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"last.pt", "mine.part"}


def test_log_stays_whole_when_a_resumed_run_finds_the_disk_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rows = [{"iteration": number} for number in (1, 2)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left.*log\.jsonl"):
        Reporter(tmp_path, Console(file=io.StringIO())).forget_after(1)
    assert read_log(tmp_path) == rows


def test_lines_of_the_log_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    lines = (b'{"iteration": 1}', b"\xff\xfe", b"7", b"[1]", b"{}", b'{"iteration": "2"}', b'{"it')
    (tmp_path / "log.jsonl").write_bytes(b"\r\n".join(lines))
    assert read_log(tmp_path) == [{"iteration": 1}]


def test_row_of_a_validation_before_any_loss_is_shown(tmp_path: Path) -> None:
    out = io.StringIO()
    row = {"iteration": 3, "epoch": 0, "learning_rate": 0.0, "val_ap": 0.25, "val_ap50": 0.5}
    Reporter(tmp_path, Console(file=out)).row(row, Pace(3, 1.0, 0.0, 0.0))
    heading, shown = out.getvalue().splitlines()
    assert shown.split() == ["100.0%", "0", "3", "0:00", *"----", "0e+00", "0.250", "0.500"]
    assert len(shown) == len(heading)


class _Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_run_goes_on_without_its_terminal(tmp_path: Path) -> None:
    Reporter(tmp_path, Console(file=_Gone())).line("some text")


def test_chart_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    class Figure:
        axes = ()

        def savefig(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device.*f1\.png"):
        charts._save(Figure(), tmp_path / "f1.png")
