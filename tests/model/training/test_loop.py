"""The training loop as a whole."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from model import ops
from model.data.errors import DataError, OutputError
from model.network.linear import Linear
from model.ops import cpu, reference
from model.postprocess import select_detections
from model.training import loop as loop_room
from model.training import start
from model.training.batches import collate, normalise
from model.training.loop import Trainer, TrainingFailed, TrainingStopped, train
from model.training.matcher import NonFiniteError
from model.training.objective import Objective
from model.training.optimizer import build_optimizer, set_learning_rate
from model.training.options import TrainOptions
from model.training.own_data import TrainingData
from model.training.report import read_log
from model.training.sources import AnnotatedImage, CacheSource
from model.training.start import generate_code_image, open_source
from model.training.state import TrainingStateError
from model.training.transfer import load_fitting
from model.weights.checkpoint import load_detector
from model.weights.info import read_model_info
from tests.model.training.tiny import (
    LABELS,
    quick_detector,
    tiny_detector,
    tiny_options,
    tiny_trainer,
    write_cache,
)

_TIMINGS = ("elapsed_seconds", "seconds_per_iteration")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache")


class _StoppingSource(CacheSource):
    """Sends this process SIGTERM while the n-th image is read."""

    def __init__(self, folder: Path, stop_at: int) -> None:
        super().__init__(folder, LABELS)
        self._stop_at = stop_at

    def load(self, index: int) -> AnnotatedImage:
        self._stop_at -= 1
        if self._stop_at == 0:
            signal.raise_signal(signal.SIGTERM)
        return super().load(index)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key not in _TIMINGS}
        for row in read_log(folder)
    ]


def test_stopped_and_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path / "whole", resume=True, symmetries="dihedral", log_every=1)
    whole = tiny_trainer(options, CacheSource(cache, LABELS))
    torch.manual_seed(9)
    expected = whole.run()
    halves = options.changed(output=tmp_path / "halves")
    torch.manual_seed(9)
    # One sample image, then two images a batch: the fourth batch gets the signal.
    first = tiny_trainer(halves, _StoppingSource(cache, 1 + 3 * 2 + 1))
    torch.manual_seed(9)
    with pytest.raises(TrainingStopped, match="SIGTERM") as stopped:
        first.run()
    assert stopped.value.exit_status == 143
    assert stopped.value.model == halves.output / "model.safetensors"
    assert first.position.iteration == 4
    torch.manual_seed(1234)
    second = tiny_trainer(halves, CacheSource(cache, LABELS))
    found = second.run()
    assert second.position.iteration == options.max_iterations
    assert _rows(options.output) == _rows(halves.output)
    for name, tensor in whole.detector.state_dict().items():
        assert torch.equal(tensor, second.detector.state_dict()[name]), name
    wanted, exported = load_detector(expected)[0], load_detector(found)[0]
    for one, other in zip(wanted.parameters(), exported.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_two_images_are_overfitted(tmp_path: Path) -> None:
    source = CacheSource(write_cache(tmp_path, 2), LABELS)
    batch = collate([source.load(0), source.load(1)])
    torch.manual_seed(0)
    detector = quick_detector().train()
    options = tiny_options(tmp_path, learning_rate=2e-3, backbone_lr_factor=1.0)
    objective, optimizer = Objective(detector, options, None), build_optimizer(detector, options)
    steps = 100
    for step in range(steps):
        set_learning_rate(optimizer, min(1.0, (step + 1) / 10, 2 * (1 - step / steps)))
        objective.losses(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    detector.eval()
    with torch.inference_mode():
        output = detector(normalise(batch.images, batch.padding_mask), batch.padding_mask)
    found = select_detections(output.pred_logits, output.pred_boxes, [(96, 96)] * 2, 3)
    for index, best in enumerate(found):
        wanted = source.load(index)
        assert best.labels[0] == wanted.labels[0]
        assert best.scores[0] > 0.5 > best.scores[1]
        assert abs(best.boxes_xyxy[0] - wanted.boxes[0]).max() < 5  # pixels: IoU far above 0.5


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_run_writes_model_log_curve_and_samples(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path / "run", workers=1, accumulate=2, score_threshold=0.3)
    path = tiny_trainer(options, CacheSource(cache, LABELS)).run()
    _, info = load_detector(path)
    assert info.labels == LABELS
    assert info.score_threshold == 0.3
    rows = read_log(options.output)
    assert [row["iteration"] for row in rows] == [2, 4, 6]
    assert all(row["total"] > 0 for row in rows)
    assert (options.output / "loss.png").is_file()
    assert (options.output / "samples" / "iteration_000006.jpg").is_file()


def test_new_run_deletes_the_log_of_an_earlier_one(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, max_iterations=2)
    for _ in range(2):
        tiny_trainer(options, CacheSource(cache, LABELS)).run()
    assert [row["iteration"] for row in read_log(tmp_path)] == [2]


def test_run_ends_when_its_minutes_are_over(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, max_iterations=10_000, max_minutes=10)
    trainer = tiny_trainer(options, CacheSource(cache, LABELS))
    moments = iter(range(0, 10_000, 30))
    trainer._clock.now = lambda: float(next(moments))  # half a minute a look
    trainer.run()
    assert 0 < trainer.position.iteration < 20


class _BrokenObjective:
    """Predictions that are not finite, `times` times."""

    def __init__(self, real: Objective, times: int) -> None:
        self._real = real
        self._times = times

    def losses(self, batch: Any) -> Any:
        self._times -= 1
        if self._times >= 0:
            raise NonFiniteError("pred_boxes holds NaN")
        return self._real.losses(batch)


def _break(trainer: Trainer, times: int) -> Trainer:
    trainer._steps._objective = _BrokenObjective(trainer._steps._objective, times)  # type: ignore[assignment]
    return trainer


def test_non_finite_losses_are_skipped_and_counted(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, max_iterations=3, log_every=1)
    trainer = _break(tiny_trainer(options, CacheSource(cache, LABELS)), 2)
    trainer.run()
    assert trainer.position.iteration == 3
    assert read_log(tmp_path)[-1]["skipped"] == 2


def test_too_many_non_finite_losses_stop_the_run_naming_the_cause(
    tmp_path: Path, cache: Path
) -> None:
    options = tiny_options(tmp_path, max_skipped=4)
    trainer = _break(tiny_trainer(options, CacheSource(cache, LABELS)), 99)
    with pytest.raises(TrainingFailed, match=r"4 losses in a row.*pred_boxes holds NaN"):
        trainer.run()


def test_damaged_training_state_is_refused(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, resume=True)
    (tmp_path / loop_room.STATE_FILE).write_bytes(b"no state")
    with pytest.raises(TrainingStateError, match=r"last\.pt"):
        tiny_trainer(options, CacheSource(cache, LABELS)).run()


def test_training_state_of_another_model_is_refused(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, max_iterations=1)
    tiny_trainer(options, CacheSource(cache, LABELS)).run()
    state = torch.load(tmp_path / loop_room.STATE_FILE, weights_only=True)
    state["detector"].pop("label_enc.weight")
    torch.save(state, tmp_path / loop_room.STATE_FILE)
    with pytest.raises(TrainingStateError, match="does not fit"):
        tiny_trainer(options.changed(resume=True), CacheSource(cache, LABELS)).run()


def test_start_weights_load_what_fits_and_report_the_rest(tmp_path: Path, cache: Path) -> None:
    options = tiny_options(tmp_path, max_iterations=1)
    trainer = tiny_trainer(options, CacheSource(cache, LABELS))
    path = trainer.run()
    other = Linear(32, 5)
    fresh = tiny_detector()
    fresh.transformer.enc_out_class_embed = other
    before = other.weight.clone()
    lines = load_fitting(fresh, path)
    assert any("enc_out_class_embed" in line for line in lines[1:])
    assert torch.equal(other.weight, before)
    saved, _ = load_detector(path)
    assert torch.equal(fresh.label_enc.weight, saved.label_enc.weight)


def test_start_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        load_fitting(tiny_detector(), file)


def test_unknown_variant_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nonesuch.*lite-dino-r50"):
        tiny_options(tmp_path, variant="nonesuch")


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_run_can_use_the_reference_for_attention(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    calls: list[str] = []
    original = reference.key_aware_deform_attn

    def spy(*arguments: Any) -> Any:
        calls.append("reference")
        return original(*arguments)

    monkeypatch.setattr(reference, "key_aware_deform_attn", spy)
    options = tiny_options(tmp_path / "run", max_iterations=1, kernel=kernel)
    try:
        tiny_trainer(options, CacheSource(cache, LABELS)).run()
    finally:
        ops.select_implementation("auto")
    if kernel == "reference":
        assert calls
    elif cpu.available():
        assert not calls


def test_live_scenes_are_the_same_for_the_same_number(tmp_path: Path) -> None:
    pytest.importorskip("zxingcpp")
    data = open_source(tiny_options(tmp_path, live_scenes=5))
    assert len(data.source) == 5
    assert len(data.labels) == len(data.category_ids) == 5
    first, again = (generate_code_image(3, seed=1, max_side=128) for _ in range(2))
    assert (first.pixels == again.pixels).all()
    assert first.pixels.shape[0] <= 128


def test_a_share_of_the_generated_images_is_from_edition_1() -> None:
    pytest.importorskip("zxingcpp")

    def images(edition: int, share: float = 0.0) -> list[bytes]:
        generated = (
            generate_code_image(n, seed=1, max_side=96, edition=edition, edition_1_share=share)
            for n in range(8)
        )
        return [each.pixels.tobytes() for each in generated]

    first, second = images(1), images(2)
    mixed = images(2, 0.5)
    assert {*first} & {*mixed}
    assert {*second} & {*mixed}
    assert {*mixed} <= {*first, *second}
    assert images(2, 1.0) == first


def test_generated_images_are_validated_on_given_ones(tmp_path: Path) -> None:
    pytest.importorskip("zxingcpp")
    from model.training.codes import cache as code_cache

    code_cache.build(tmp_path / "val", 4, seed=3, max_side=96)
    given = {
        "val_annotations": tmp_path / "val" / "annotations.json",
        "val_images": tmp_path / "val",
    }
    data = open_source(tiny_options(tmp_path, live_scenes=5, **given))
    assert data.validation is not None
    assert len(data.validation.truth.images) == 4
    cached = open_source(tiny_options(tmp_path, cache=tmp_path / "val", **given))
    assert cached.validation is not None


def test_without_the_generator_the_error_names_the_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "_GENERATOR", "model.training.absent")
    with pytest.raises(DataError, match=r"source checkout: .*--annotations and --images"):
        open_source(tiny_options(tmp_path))


def test_train_opens_coco_data_and_sizes_the_network_by_its_categories(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "category_id": 4, "bbox": [10, 10, 30, 30]}],
        "categories": [{"id": 4, "name": "red"}, {"id": 6, "name": "blue"}],
    }
    annotations = tmp_path / "coco.json"
    annotations.write_text(json.dumps(document))
    monkeypatch.setattr(loop_room, "build_start", lambda *_: tiny_detector())
    options = tiny_options(
        tmp_path / "out", annotations=annotations, images=cache, max_iterations=1
    )
    info = read_model_info(train(options))
    assert (info.labels, info.category_ids, info.name) == (LABELS, (4, 6), "tiny")


def test_second_run_in_the_same_folder_is_refused_before_it_reads_data(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_room, "build_start", lambda *_: tiny_detector())
    monkeypatch.setattr(loop_room, "open_source", _open_cache)
    options = tiny_options(tmp_path / "out", cache=cache, max_iterations=1)
    first = train(options).read_bytes()
    for more in ({}, {"cache": tmp_path / "absent"}):
        with pytest.raises(OutputError, match=r"out has model\.safetensors .*--overwrite"):
            train(options.changed(**more))
    assert (options.output / "model.safetensors").read_bytes() == first
    train(options.changed(overwrite=True, max_iterations=2))
    assert [row["iteration"] for row in read_log(options.output)] == [2]


@pytest.mark.parametrize("more", [{}, {"overwrite": True}, {"resume": True}])
def test_a_run_never_replaces_its_inputs(tmp_path: Path, more: dict[str, bool]) -> None:
    source, output = tmp_path / "start.safetensors", tmp_path / "out"
    output.mkdir()
    source.write_bytes(b"mine")
    (output / "model.safetensors").hardlink_to(source)
    (output / "last.pt").write_bytes(b"")
    with pytest.raises(OutputError, match="is an input of this command"):
        train(tiny_options(output, init_from=source, **more))
    assert source.read_bytes() == b"mine"


def test_run_without_a_state_to_resume_does_not_replace_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"model\.safetensors"):
        train(tiny_options(tmp_path, resume=True))
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


def test_resume_of_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no last\.pt to continue from"):
        train(TrainOptions(output=tmp_path / "typo", resume=True))
    with pytest.raises(OutputError, match=r"with an option that says what to train"):
        train(TrainOptions(output=tmp_path / "typo", resume=True, max_minutes=60))
    assert not (tmp_path / "typo").exists()


def test_resume_keeps_the_name_and_refuses_other_classes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_room, "build_start", lambda *_: tiny_detector())
    monkeypatch.setattr(loop_room, "open_source", _open_cache)
    options = tiny_options(tmp_path / "out", cache=cache, max_iterations=1, name="squares")
    assert read_model_info(train(options)).name == "squares"
    again = options.changed(name=None, resume=True, max_iterations=2)
    assert read_model_info(train(again)).name == "squares"
    before = (options.output / "model.safetensors").read_bytes()

    def other_classes(*_arguments: object, **_more: object) -> TrainingData:
        return TrainingData(CacheSource(cache, LABELS), ("red", "green"), (1, 2))

    monkeypatch.setattr(loop_room, "open_source", other_classes)
    with pytest.raises(TrainingStateError, match=r"other classes: .*red, blue.*red, green"):
        train(again.changed(max_iterations=3))
    assert (options.output / "model.safetensors").read_bytes() == before


def _open_cache(options: TrainOptions, **_more: object) -> TrainingData:
    """Opens the tiny cache with its own classes."""
    assert options.cache is not None
    return TrainingData(CacheSource(options.cache, LABELS), LABELS, (1, 2))


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a b", "a" * 129, "ä"])
def test_name_that_does_not_fit_into_a_url_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        tiny_options(tmp_path, name=name)
