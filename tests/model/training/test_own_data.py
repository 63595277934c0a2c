"""Runs on the user's own data: validation, best weights, resuming, events, report."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import nn

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.data.errors import DataError
from model.errors import DeviceError
from model.training import loop
from model.training.events import (
    Callback,
    CallbackError,
    Callbacks,
    RunEnd,
    RunStart,
    load_callback,
)
from model.training.loop import TrainingFailed, train
from model.training.objective import Objective, choose_device
from model.training.options import TrainOptions
from model.training.own_data import open_own_data
from model.training.processes import Processes
from model.training.report import Pace, Reporter, read_log
from model.training.run_folder import STATE_FILE
from model.training.run_writer import RunWriter
from model.training.sources import CacheSource
from model.training.state import TrainingStateError, load_state
from model.training.tensorboard import TensorBoard
from model.training.trainer import Trainer
from model.training.validation import Validation, Validator, holdout
from model.weights.header import read_header
from model.weights.info import read_model_info
from tests.model.training.tiny import (
    LABELS,
    tiny_detector,
    tiny_options,
    tiny_trainer,
    write_cache,
)


def _write_coco(folder: Path, name: str, images: Path, numbers: range) -> Path:
    """COCO JSON of some images of `write_cache`."""
    scenes = [json.loads(line) for line in (images / "scenes.jsonl").read_text().splitlines()]
    document: dict[str, Any] = {
        "images": [{"id": n + 1, "file_name": scenes[n]["file"]} for n in numbers],
        "annotations": [],
        "categories": [{"id": i, "name": label} for i, label in enumerate(LABELS, 4)],
    }
    for n in numbers:
        left, top, right, bottom = scenes[n]["boxes"][0]
        document["annotations"].append(
            {
                "id": n + 1,
                "image_id": n + 1,
                "category_id": 4 + scenes[n]["labels"][0],
                "bbox": [left, top, right - left, bottom - top],
            }
        )
    file = folder / name
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("images"), 12)


@pytest.fixture
def options(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    monkeypatch.setattr(loop, "build_start", lambda *_: tiny_detector())
    return tiny_options(
        tmp_path / "run",
        annotations=_write_coco(tmp_path, "train.json", images, range(12)),
        images=images,
        max_iterations=2,
        learning_rate=1e-3,
    )


class _Recorder(Callback):
    """Keeps the events of a run."""

    events: list[tuple[str, Any]]  # of the last created recorder's class

    def on_start(self, start: RunStart) -> None:
        type(self).events = [("start", start)]

    def on_row(self, iteration: int, values: Any) -> None:
        self.events.append(("row", (iteration, values)))

    def on_validation(self, iteration: int, scores: Any, is_best: bool) -> None:
        self.events.append(("validation", (iteration, scores, is_best)))

    def on_end(self, end: RunEnd) -> None:
        self.events.append(("end", end))


def test_holdout_is_the_same_for_any_order_and_keeps_all_images(
    tmp_path: Path, images: Path
) -> None:
    truth = GroundTruth.read(_write_coco(tmp_path, "all.json", images, range(12)))
    training, held_out = holdout(truth, 0.25)
    assert held_out is not None
    assert (len(training.images), len(held_out.images)) == (9, 3)
    backwards = GroundTruth(truth.images[::-1], truth.categories)
    again = holdout(backwards, 0.25)[1]
    assert again is not None
    assert {i.image_id for i in again.images} == {i.image_id for i in held_out.images}
    few = GroundTruth(truth.images[:9], truth.categories)
    assert holdout(few, 0.25) == (few, None)
    assert holdout(truth, 0.0) == (truth, None)


def test_holdout_leaves_an_image_of_each_class_to_train_on() -> None:
    box = AnnotatedBox(1, (0, 0, 9, 9), 81)
    rare = AnnotatedBox(2, (0, 0, 9, 9), 81)
    for place in range(12):
        rows = tuple(
            ImageAnnotations(n, f"{n}.png", (box, rare) if n == place else (box,))
            for n in range(12)
        )
        training, held_out = holdout(GroundTruth(rows, {1: "a", 2: "b"}), 0.5)
        assert training.counts()[2] == 1
        assert held_out is not None
        assert len(held_out.images) == 6


def test_run_on_own_data_validates_keeps_the_best_and_reports(options: TrainOptions) -> None:
    name = f"{__name__}:_Recorder"
    path = train(options.changed(callbacks=(name,), holdout=0.25))
    folder = options.output
    assert {"last.pt", "last.safetensors", "report.md"} <= {p.name for p in folder.iterdir()}
    assert read_log(folder)[-1]["val_ap"] is not None
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "validation images" in page and "| boxes | AP |" in page
    for line in page.splitlines():
        if line.startswith("!["):
            assert (folder / line.partition("(")[2].rstrip(")")).is_file(), line
    kinds = [kind for kind, _ in _Recorder.events]
    assert kinds[0] == "start" and kinds[-1] == "end"
    assert {"row", "validation"} <= set(kinds)
    end = _Recorder.events[-1][1]
    assert (end.model, end.finished) == (path, True)
    assert "ap50" in end.scores
    card = json.loads(read_header(path).metadata["card"])
    assert card["training"]["data"] == "train.json"
    assert card["validation"]["images"] == 3
    assert read_model_info(path).category_ids == (4, 5)


@pytest.mark.slow
def test_resumed_run_needs_no_data_options(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(options)
    monkeypatch.chdir(tmp_path)
    again = TrainOptions(output=options.output, resume=True, max_iterations=3)
    train(again)
    rows = read_log(options.output)
    assert rows[-1]["iteration"] == 3
    with pytest.raises(TrainingStateError, match=r"--variant is .*lite0 in it, .*r18-small here"):
        train(again.changed(variant="lite-dino-r18-small"))


@pytest.mark.slow
def test_early_stop_names_its_reason(options: TrainOptions, images: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    options = options.changed(
        max_iterations=50, patience=2, validate_minutes=0.0, log_every=1, learning_rate=1e-9
    )
    data = open_own_data(options)
    options.output.mkdir(parents=True)
    reporter = Reporter(options.output, Console(file=out, width=200))
    trainer = Trainer(
        tiny_detector(), data.source, LABELS, options, reporter, validation=data.validation
    )
    trainer.run()
    assert 50 / 4 <= trainer.position.iteration < 50
    assert "no better AP in" in out.getvalue()


def _as_if_killed(_trainer: Trainer) -> Path:
    raise KeyboardInterrupt


def test_a_killed_run_knows_its_best_weights(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options.changed(max_iterations=2, validate_minutes=0.0, checkpoint_minutes=99.0)
    data = open_own_data(options)
    options.output.mkdir(parents=True)
    trainers = [
        Trainer(
            tiny_detector(),
            data.source,
            LABELS,
            options,
            Reporter(options.output, Console(file=io.StringIO())),
            validation=data.validation,
        )
        for _ in range(2)
    ]
    monkeypatch.setattr(Trainer, "_end", _as_if_killed)
    with pytest.raises(KeyboardInterrupt):
        trainers[0].run()
    saved = load_state(options.output / STATE_FILE, trainers[1].run_state, LABELS).position
    best = trainers[0].position
    assert best.best_iteration > 0
    assert (saved.best_iteration, saved.best_ap) == (best.best_iteration, best.best_ap)


def test_of_weights_that_find_nothing_the_newest_are_kept(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_own_data(options)
    assert data.validation is not None
    validate = Validator.validate

    def finding_nothing(*arguments: Any, **named: Any) -> Validation:
        found = validate(*arguments, **named)
        return replace(found, scores=replace(found.scores, ap=0.0))

    monkeypatch.setattr(Validator, "validate", finding_nothing)
    options.output.mkdir(parents=True)
    reporter = Reporter(options.output, Console(file=io.StringIO()))
    trainer = Trainer(
        tiny_detector(), data.source, LABELS, options, reporter, validation=data.validation
    )
    for trainer.position.iteration in (3, 7):
        trainer._writer.validate(trainer.position, 0.0)
    assert trainer.position.best_iteration == 7
    assert trainer.position.validations_since_best == 1


def test_few_boxes_choose_neither_threshold_nor_duplicate_iou(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []
    scored = Validator._scored

    def recorded(self: Validator, found: Any, iou: float, unreadable: Any) -> Validation:
        tried.append(iou)
        return scored(self, found, iou, unreadable)

    monkeypatch.setattr(Validator, "_scored", recorded)
    monkeypatch.setattr("model.training.run_writer.best_threshold", lambda _curves: 0.77)
    for fewest, threshold, several in ((1, 0.77, True), (1000, 0.4, False)):
        tried.clear()
        monkeypatch.setattr("model.training.validation.FEWEST_BOXES", fewest)
        folder = options.output / str(fewest)
        info = read_model_info(train(options.changed(output=folder, max_iterations=1)))
        assert info.score_threshold == pytest.approx(threshold)
        assert (set(tried) != {1.0}) == several
        assert several or info.config.duplicate_iou == 1


def test_of_many_validation_images_some_are_used(
    options: TrainOptions, images: Path, tmp_path: Path
) -> None:
    file = _write_coco(tmp_path, "val.json", images, range(10))
    given = options.changed(val_annotations=file, val_images=images)
    counts, described = [], []
    for most in (0, 10, 4, 3):
        found = open_own_data(given.changed(validation_images=most)).validation
        assert found is not None
        counts.append({image.file_name for image in found.truth.images})
        described.append(found.description)
    assert [len(each) for each in counts] == [10, 10, 4, 3]
    assert counts[3] < counts[2]
    assert described[2].startswith("4 of 10 (--validation-images) images of ")
    held_out = open_own_data(options.changed(holdout=0.5, validation_images=2)).validation
    assert held_out is not None and len(held_out.truth.images) == 2


class _Exchanges(Processes):
    """One of two processes; the other one always has the same values."""

    calls: ClassVar[list[str]] = []

    def largest(self, value: float) -> float:
        self.calls.append("largest")
        return value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        self.calls.append("average_gradients")

    def share_weights(self, module: nn.Module) -> None:
        self.calls.append("share_weights")

    def _sum(self, value: float) -> float:
        self.calls.append("sum")
        return self.count * value


def test_process_that_validates_and_saves_exchanges_as_often_as_the_others(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("finish", "write_samples"):  # they take seconds, and exchange nothing
        monkeypatch.setattr(RunWriter, name, lambda *_, **__: None)
    calls = []
    for rank, minutes in ((0, 0.0), (1, 9.0)):  # as if only the clock of the first one were due
        changed = options.changed(
            output=tmp_path / str(rank), max_iterations=1, batch_size=1, max_minutes=10.0,
            checkpoint_minutes=minutes, holdout=0.25,
        )  # fmt: skip
        changed.output.mkdir()
        data = open_own_data(changed)
        reporter = Reporter(changed.output, Console(file=io.StringIO()), silent=rank > 0)
        _Exchanges.calls = []
        Trainer(
            tiny_detector(), data.source, LABELS, changed, reporter, validation=data.validation,
            processes=_Exchanges(rank, 2),
        ).run()  # fmt: skip
        calls.append(_Exchanges.calls)
    assert (tmp_path / "0" / "model.safetensors").exists()
    assert "largest" in calls[0]
    assert calls[0] == calls[1]


def test_validation_classes_that_are_not_trained_are_refused(
    options: TrainOptions, images: Path, tmp_path: Path
) -> None:
    file = _write_coco(tmp_path, "val.json", images, range(4))
    document = json.loads(file.read_text())
    document["categories"][0]["name"] = "green"
    file.write_text(json.dumps(document))
    given = options.changed(val_annotations=file, val_images=images)
    with pytest.raises(DataError, match="green"):
        open_own_data(given)


def test_images_in_both_sets_are_reported(
    options: TrainOptions, images: Path, tmp_path: Path
) -> None:
    file = _write_coco(tmp_path, "val.json", images, range(4))
    lines: list[str] = []
    open_own_data(options.changed(val_annotations=file, val_images=images), lines.append)
    assert any("4 of 4 validation images are also trained on" in line for line in lines)


class _SmallMemory:
    """Runs out of memory with more than some images at a time."""

    def __init__(self, real: Objective, most: int) -> None:
        self._real = real
        self._most = most
        self.sizes: list[int] = []

    def losses(self, batch: Any) -> Any:
        self.sizes.append(len(batch.images))
        if len(batch.images) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self._real.losses(batch)


def test_out_of_memory_continues_with_parts_of_the_batch(tmp_path: Path) -> None:
    source = CacheSource(write_cache(tmp_path / "cache"), LABELS)
    trainer = tiny_trainer(tiny_options(tmp_path / "run", batch_size=4, max_iterations=2), source)
    memory = _SmallMemory(trainer._steps._objective, 1)
    trainer._steps._objective = memory  # type: ignore[assignment]
    trainer.run()
    assert trainer.position.iteration == 2
    assert memory.sizes == [4, 2, *[1] * 8]


def test_memory_for_no_single_image_ends_the_run_with_advice(tmp_path: Path) -> None:
    source = CacheSource(write_cache(tmp_path / "cache"), LABELS)
    trainer = tiny_trainer(tiny_options(tmp_path / "run"), source)
    trainer._steps._objective = _SmallMemory(trainer._steps._objective, 0)  # type: ignore[assignment]
    with pytest.raises(TrainingFailed, match="--sizes"):
        trainer.run()


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "gpu", "meta"])
def test_device_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=name):
        choose_device(name)


@pytest.mark.parametrize("name", ["no.such.module:x", "json:nothing", "json", ""])
def test_callback_that_cannot_be_loaded_is_named(name: str) -> None:
    with pytest.raises(CallbackError, match=r"package\.module:name"):
        load_callback(name)


@pytest.mark.parametrize("name", ["os:path", "builtins:dict"])
def test_callback_without_the_methods_is_refused(name: str) -> None:
    with pytest.raises(CallbackError, match=f"{name}.*no method on_start"):
        load_callback(name)


def test_events_reach_all_callbacks_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    module = types.ModuleType("some_tracker")

    class Tracker(Callback):
        def on_row(self, iteration: int, values: Any) -> None:
            seen.append(f"{iteration}")

    module.Tracker = Tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_tracker", module)
    both = Callbacks([load_callback("some_tracker:Tracker"), load_callback("some_tracker:Tracker")])
    both.on_row(3, {})
    both.on_validation(3, {}, True)
    assert seen == ["3", "3"]


def test_tensorboard_writes_losses_and_scores(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard()
    board.on_start(RunStart(tmp_path, LABELS, {}, 0))
    board.on_row(20, {"total": 3.5, "epoch": 1, "val_ap": 0.25})
    board.on_validation(20, {"ap": 0.25, "ap50": 0.5}, True)
    board.on_end(RunEnd(tmp_path / "m", 20, True, {}, ()))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/total", "val/ap", "val/ap50"]
    (loss,) = events.Scalars("train/total")
    assert (loss.step, loss.value) == (20, 3.5)


def test_rows_fit_a_terminal_of_80_columns(tmp_path: Path) -> None:
    out = io.StringIO()
    reporter = Reporter(tmp_path, Console(file=out, width=80, soft_wrap=True))
    row = {"iteration": 999_999, "epoch": 9999, "total": 123.45, "learning_rate": 4e-4}
    row |= {"classification": 0.5, "box_l1": 0.25, "giou": 1.25, "val_ap": 0.5, "val_ap50": 0.75}
    reporter.row(row, Pace(999_999, 1.0, 2.0, 100 * 3600))
    heading, line = out.getvalue().splitlines()
    assert max(len(heading), len(line)) <= 80
    assert line.endswith("0.500  0.750")
    assert "100:00:00" in line
