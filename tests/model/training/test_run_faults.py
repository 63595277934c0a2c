"""Runs that fail, are resumed after a change, or meet the files of another run."""

from __future__ import annotations

import io
import os
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.data.errors import DataError, OutputError
from model.data.output_files import naming_file
from model.training import loop
from model.training.batches import load_batches
from model.training.errors import TrainingFailed
from model.training.events import Callback, CallbackError, Callbacks, load_callback
from model.training.loop import train
from model.training.model_card import model_card
from model.training.options import TrainOptions
from model.training.report import Reporter
from model.training.resume import naming_saved_state, resumed_options, stored_options
from model.training.run_folder import (
    STATE_FILE,
    check_run_folder,
    delete_files_of_run,
    locked_folder,
)
from model.training.sources import CacheSource
from model.training.state import Position, SavedRun, TrainingStateError, save_state
from model.training.trainer import Trainer
from model.training.transfer import load_fitting
from model.training.validation import ValidationSet, Validator
from model.weights.header import CheckpointError, read_header
from service.cli import main
from service.cli.failure import describe_failure
from tests.model.training.tiny import LABELS, tiny_detector, tiny_options, write_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"), 4)


def _validation(folder: Path, *file_names: str) -> ValidationSet:
    boxes = (AnnotatedBox(1, (10, 10, 30, 30), 900),)
    images = tuple(ImageAnnotations(n, name, boxes) for n, name in enumerate(file_names, 1))
    return ValidationSet(GroundTruth(images, dict(enumerate(LABELS, 1))), folder, "some images")


class _FailingCallback(Callback):
    """Fails at the first row."""

    def on_row(self, iteration: int, values: Any) -> None:
        raise KeyError("project")


def _trainer(options: TrainOptions, cache: Path, **parts: Any) -> Trainer:
    options.output.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(options.output, Console(file=io.StringIO()))
    return Trainer(tiny_detector(), CacheSource(cache, LABELS), LABELS, options, reporter, **parts)


def test_failing_callback_is_named_and_the_state_is_saved(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, log_every=1, max_iterations=4)
    trainer = _trainer(options, cache, callback=Callbacks([_FailingCallback()]))
    with pytest.raises(CallbackError, match=r"_FailingCallback\.on_row failed: KeyError"):
        trainer.run()
    again = _trainer(options.changed(resume=True), cache)
    again._load_state()
    assert again.position.iteration == 1


def test_callback_that_fails_when_created_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("some_tracker")

    def login() -> None:
        raise RuntimeError("no login")

    module.login = login  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_tracker", module)
    with pytest.raises(CallbackError, match=r"some_tracker:login.*RuntimeError: no login"):
        load_callback("some_tracker:login")


def test_module_of_a_callback_with_a_syntax_error_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_tracker.py").write_text("def x(:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CallbackError, match=r"broken_tracker:X.*SyntaxError"):
        load_callback("broken_tracker:X")


def test_missing_tensorboard_is_reported_with_its_extra() -> None:
    error = ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
    assert "lite-detr-service[tensorboard]" in describe_failure(error)


def test_unreadable_validation_image_counts_as_without_detections(tmp_path: Path) -> None:
    write_cache(tmp_path, 1)
    (tmp_path / "half.png").write_bytes((tmp_path / "0.png").read_bytes()[:150])
    detector, device = tiny_detector(), torch.device("cpu")
    data = _validation(tmp_path, "0.png", "half.png")
    validation = Validator(data, LABELS, device, 1.0).validate(detector, detector.state_dict())
    assert "half.png" in validation.scores.unreadable_images[0]
    assert validation.scores.num_boxes == 2
    assert [entry.image_id for entry in validation.predictions] == [1]
    with pytest.raises(DataError, match="no validation image can be read"):
        Validator(_validation(tmp_path, "half.png"), LABELS, device, 1.0).validate(
            detector, detector.state_dict()
        )


def test_memory_that_runs_out_in_validation_gives_advice(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Validator, "validate", run_out)
    trainer = _trainer(tiny_options(tmp_path), cache, validation=_validation(cache, "0.png"))
    with pytest.raises(TrainingFailed, match="--input-side"):
        trainer._validate()


@pytest.mark.parametrize(
    ("digest", "model", "reason"),
    [
        ("same", True, None),
        (None, True, None),
        ("same", False, r"model\.safetensors is missing"),
        ("other", True, "validation images have changed"),
    ],
    ids=["as before", "state without a digest", "no model", "other images"],
)
def test_best_weights_count_while_they_and_the_validation_images_are_the_same(
    tmp_path: Path, cache: Path, digest: str | None, model: bool, reason: str | None
) -> None:
    data = _validation(cache, "0.png")
    writer = _trainer(tiny_options(tmp_path), cache, validation=data)._writer
    if model:
        writer.model_path.touch()
    saved = SavedRun(Position(3, best_iteration=2), LABELS, None, digest)
    if digest == "same":
        saved = replace(saved, validation=data.digest)
    assert data.digest != _validation(cache, "1.png").digest
    found = writer.why_best_is_lost(saved.position, saved)
    assert re.search(reason or "^None$", str(found))


def test_resumed_run_knows_its_start_weights(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, init_from=tmp_path / "start.safetensors")
    trainer = _trainer(options, cache)
    save_state(
        tmp_path / "last.pt", trainer.run_state, SavedRun(Position(), LABELS, None),
        stored_options(options),
    )  # fmt: skip
    given = TrainOptions(output=tmp_path, resume=True, init_from=tmp_path / "other.safetensors")
    resumed, lines = resumed_options(given)
    assert lines == [f"--init-from is ignored: the weights are those of {tmp_path / 'last.pt'}"]
    card = model_card(resumed, CacheSource(cache, LABELS), Position(), None, images_per_step=8)
    assert card["training"]["started_from"] == "start.safetensors"
    assert resumed_options(TrainOptions(output=tmp_path, resume=True))[1] == []


@pytest.mark.parametrize("num_writes", [0, 3])  # at once; in the middle
def test_a_second_ctrl_c_while_the_state_is_written_is_no_full_disk(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    options = tiny_options(tmp_path)
    run = _trainer(options, cache).run_state
    saved, path = SavedRun(Position(), LABELS, None), tmp_path / "last.pt"
    path.write_bytes(b"old")
    torch_save = torch.save

    class Interrupted(io.FileIO):
        num_left = num_writes

        def write(self, data: Any, /) -> int:
            if self.num_left == 0:
                raise KeyboardInterrupt
            self.num_left -= 1
            return super().write(data)

    def save(state: object, file: Any) -> None:
        with Interrupted(file.name, "w") as interrupted:
            torch_save(state, interrupted)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, run, saved, stored_options(options))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_resumed_run_whose_data_was_moved_says_what_to_give(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path / "run", cache=tmp_path / "moved", max_iterations=1)
    trainer = _trainer(options, cache)
    trainer.position.iteration = 1
    trainer._save()
    with pytest.raises(DataError, match=r"moved.*\nif the data of the run is in another place"):
        train(TrainOptions(output=options.output, resume=True))


def test_resumed_run_without_anything_left_to_train_says_so(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, max_iterations=1, sample_pictures=0)
    trainer = _trainer(options, cache)
    trainer.position.iteration = 1
    trainer._save()
    again = _trainer(options.changed(resume=True), cache)
    again.run()
    console = again._reporter._console
    assert isinstance(console.file, io.StringIO)
    assert "nothing is left to train at iteration 1" in console.file.getvalue()


def test_resumed_run_names_the_earlier_data(tmp_path: Path, cache: Path) -> None:
    trainer = _trainer(tiny_options(tmp_path, data=tmp_path / "old"), cache)
    trainer._save()
    options, lines = resumed_options(TrainOptions(output=tmp_path, resume=True, cache=cache))
    assert (options.cache, options.data) == (cache, None)
    assert lines == [f"--cache is {cache} from here on, it was None"]
    options, lines = resumed_options(TrainOptions(output=tmp_path, resume=True, data=cache))
    assert lines == [f"--data is {cache} from here on, it was {tmp_path / 'old'}"]


def test_second_run_in_a_folder_in_use_is_refused(tmp_path: Path, cache: Path) -> None:
    with (
        locked_folder(tmp_path),
        pytest.raises(OutputError, match="in use by another run"),
    ):
        train(tiny_options(tmp_path, cache=cache))


def test_folder_is_free_after_a_run_though_a_loading_process_has_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    close = os.close
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", kept.append)  # as a process that was forked during the run
        with locked_folder(tmp_path):
            pass
    try:
        with locked_folder(tmp_path):
            pass
    finally:
        close(kept[0])


def test_overwriting_run_deletes_the_files_of_the_earlier_one_only(tmp_path: Path) -> None:
    old = ("last.pt", "last.safetensors", "report.md", "report/worst_1.jpg", "report/f1.png",
           "samples/iteration_000001.jpg", "tensorboard/events.out.tfevents.1.a")  # fmt: skip
    own = ("notes.md", "report/notes.png", "samples/mine.jpg", "train.json")
    for name in (*old, *own):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    delete_files_of_run(tmp_path)
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert files == set(own)


def test_state_given_as_the_folder_of_a_run_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    options = TrainOptions(output=tmp_path / "last.pt", resume=True)
    with pytest.raises(OutputError, match=rf"is a file.*: {tmp_path} may be meant"):
        check_run_folder(options)


def test_error_of_a_loading_process_comes_without_its_traceback() -> None:
    def loader() -> Iterator[Any]:
        yield "batch"
        raise DataError(
            "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent "
            "call last):\n  File ...\nmodel.data.errors.DataError: a.png cannot be read\n"
        )

    batches = load_batches(loader())  # type: ignore[arg-type]
    assert next(batches) == "batch"  # type: ignore[comparison-overlap]
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == "a.png cannot be read"


def test_failed_write_of_pillow_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"encoder error.*loss\.png"),
        naming_file(tmp_path / "loss.png"),
    ):
        raise OSError("encoder error -2 when writing image file")


def test_lines_of_a_run_keep_colons_and_brackets() -> None:
    out = io.StringIO()
    Reporter(Path(), Console(file=out)).line("classes: :dog:, [red]")
    assert out.getvalue() == "classes: :dog:, [red]\n"


def test_weights_that_are_not_finite_replace_no_saved_ones(tmp_path: Path, cache: Path) -> None:
    trainer = _trainer(tiny_options(tmp_path), cache, validation=_validation(cache, "0.png"))
    files = [tmp_path / "last.pt", tmp_path / "model.safetensors"]
    for file in files:
        file.write_bytes(b"good")
    with torch.no_grad():
        next(trainer.detector.parameters()).fill_(torch.nan)
    for action in (trainer._save, trainer._validate):
        with pytest.raises(TrainingFailed, match=r"NaN or infinite .*--learning-rate"):
            action()
    trainer._save_after_error()
    assert [file.read_bytes() for file in files] == [b"good", b"good"]


def test_loading_process_that_is_killed_ends_the_run_with_advice(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    trainer = _trainer(tiny_options(tmp_path), cache)
    monkeypatch.setattr(trainer._steps, "train_on", die)
    with pytest.raises(TrainingFailed, match=r"pid 7.*--workers 0"):
        trainer.run()


def test_start_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    detector = tiny_detector()
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name].view(-1)[0] = torch.inf
    save_file(state, tmp_path / "start.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_fitting(detector, tmp_path / "start.safetensors")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--images", "x"], "--annotations ANNOTATIONS and --images IMAGES require each other"),
        (
            ["--val-annotations", "x"],
            "--val-annotations VAL_ANNOTATIONS and --val-images VAL_IMAGES require each other",
        ),
        (["--data", "x", "--cache", "y"], "--data DATA and --cache CACHE exclude each other"),
    ],
)
def test_options_that_do_not_fit_together_are_named(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--output", str(tmp_path), *given]) == 2
    line = capsys.readouterr().err.replace("(env var LITE_DETR_TRAIN_", "").replace(")", "")
    assert line == f"lite-detr: Invalid value: {words}\n"


@pytest.mark.parametrize(
    "given",
    [["--seed", str(2**64)], ["--threads", "100000"], ["--workers", "100000"]],
    ids=lambda given: given[0],
)
def test_number_that_is_too_large_is_named(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--output", str(tmp_path), *given]) == 2
    assert f"{given[0]} (env var" in capsys.readouterr().err


def test_failed_run_prints_a_command_that_a_shell_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my run"

    def fail(options: TrainOptions) -> Path:
        options.output.mkdir()
        (options.output / "last.pt").touch()
        with naming_saved_state(options.output):
            raise OSError(28, "No space left on device", str(options.output / "log.jsonl"))

    monkeypatch.setattr(loop, "train", fail)
    assert main(["train", "--output", str(folder)]) == 1
    err = capsys.readouterr().err
    assert "log.jsonl: No space left on device" in err
    assert f"lite-detr train --resume '{folder}'" in err


@pytest.mark.slow
def test_model_card_has_the_iteration_of_the_best_weights(tmp_path: Path, cache: Path) -> None:
    data = _validation(cache, "0.png", "1.png")
    trainer = _trainer(tiny_options(tmp_path, max_iterations=2), cache, validation=data)
    trainer._writer.validate(trainer.position, 0.0)
    trainer.position.best_iteration, trainer.position.best_ap = 1, 2.0  # no other one is better
    path = trainer.run()
    assert '"iterations": 1' in read_header(path).metadata["card"]


@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "other", "truncated"])
def test_a_damaged_state_is_named_with_what_can_be_done(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / STATE_FILE
    torch.save({"format": 1, "numbers": torch.zeros(500)}, path)
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    with pytest.raises(TrainingStateError) as refused:
        resumed_options(TrainOptions(output=tmp_path, resume=True))
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{path} cannot be read, it may be damaged or incomplete (")
    assert "()" not in line and line.endswith("starts a new run from its weights")


def test_a_state_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STATE_FILE)
    with pytest.raises(TrainingStateError) as refused:
        resumed_options(TrainOptions(output=tmp_path, resume=True))
    assert "damaged" not in str(refused.value)
