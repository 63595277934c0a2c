"""The accuracy study: its arms start alike, its runs resume exactly, partial reports say so."""

from __future__ import annotations

import fcntl
import io
import json
import math
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmarks.paper import accuracy, accuracy_report
from benchmarks.paper.accuracy_arms import ARMS, BASE, start
from benchmarks.paper.accuracy_bootstrap import Matches, choices
from benchmarks.paper.accuracy_cost import gflops
from benchmarks.paper.accuracy_pool import Pool, fill
from benchmarks.paper.accuracy_runs import RESULT_FILE, Run, Study, run_all, train
from benchmarks.paper.accuracy_sets import SETS_FILE, ImageSet, describe, shrink
from benchmarks.paper.accuracy_statistics import t_interval
from benchmarks.paper.accuracy_training import MODEL_FILE, STATE_FILE, drawn
from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections, coco_results, evaluate_coco
from model.training.stopping import TrainingStopped
from tests.model.training.tiny import CONFIG, LABELS

TINY = replace(CONFIG, interleaved=False, key_aware=False)
QUIET = Console(file=io.StringIO())
REQUIRED = "abcd"
SCORE_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def tiny_study(folder: Path) -> Study:
    return Study(
        folder,
        base=TINY,
        iterations={"codes": 2, "bccd": 2},
        seeds=(1, 2),
        pool_images={"codes": 4, "bccd": 4},
        options={"batch_size": 2, "denoising_queries": 4},
    )


def write_photos(folder: Path, side: int = 96) -> Path:
    """Two images of one square each for training, and the same for validation."""
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
        images, annotations = [], []
        for number, label in ((1, 1), (2, 2)):
            pixels = np.full((side, side, 3), 200, np.uint8)
            pixels[20:60, 10:50] = (220 * (label == 1), 20, 220 * (label == 2))
            Image.fromarray(pixels).save(folder / part / f"{number}.png")
            size = {"width": side, "height": side}
            images.append({"id": number, "file_name": f"{number}.png", **size})
            box = {"bbox": [10, 20, 40, 40], "area": 1600, "iscrowd": 0}
            annotations.append({"id": number, "image_id": number, "category_id": label, **box})
        categories = [{"id": i, "name": name} for i, name in enumerate(LABELS, 1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{part}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Both sets with their pools."""
    folder = tmp_path_factory.mktemp("sets")
    study = tiny_study(folder)
    for name, count in study.pool_images.items():
        shrink(study.image_set(name), photos)
        fill(study.image_set(name), count, workers=1)
    return folder / "sets"


@pytest.fixture
def study(tmp_path: Path, sets: Path) -> Study:
    (tmp_path / "sets").symlink_to(sets)
    return tiny_study(tmp_path)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------ arms


def test_arms_of_one_seed_share_start_values_and_noise() -> None:
    states, noise = {}, set()
    for letter in REQUIRED:
        detector = start(ARMS[letter], TINY, LABELS, seed=4)
        states[letter] = detector.state_dict()
        noise.add(float(torch.rand(())))
    assert len(noise) == 1
    for letter in "bcd":
        shared = [
            name
            for name, tensor in states["a"].items()
            if name in states[letter] and states[letter][name].shape == tensor.shape
        ]
        assert any("linear1." in name for name in shared)
        for name in shared:
            assert torch.equal(states["a"][name], states[letter][name]), name


def test_seeds_differ() -> None:
    one, other = (start(ARMS["a"], TINY, LABELS, seed).transformer for seed in (1, 2))
    assert not torch.equal(one.level_embed, other.level_embed)


def test_the_backbone_is_frozen_and_computes_what_the_trainable_one_does() -> None:
    detector = start(ARMS["a"], TINY, LABELS, seed=1).train()
    images = torch.randn(1, 3, 64, 96)
    maps = detector.backbone[0](images)
    assert not any(parameter.requires_grad for parameter in detector.backbone.parameters())
    for fast, exact in zip(maps, detector.body(images), strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-3, atol=1e-3)


def test_the_arm_without_low_level_tokens_has_strides_16_to_64() -> None:
    detector = start(ARMS["d"], TINY, LABELS, seed=1)
    memory, geometry = detector.encode(torch.randn(1, 3, 128, 128), torch.zeros(1, 128, 128) > 0)
    assert geometry.spatial_shapes == ((8, 8), (4, 4), (2, 2))
    assert memory.shape[1] == 64 + 16 + 4


@pytest.mark.slow
def test_the_interleaved_arms_save_the_share_of_the_claim() -> None:
    encoders = {letter: gflops(letter, BASE)["encoder"] for letter in "abc"}
    assert encoders["b"] <= encoders["c"] < 0.4 * encoders["a"]


# ------------------------------------------------------------------------------ sets


def test_photographs_are_resized_with_their_boxes(tmp_path: Path) -> None:
    target = ImageSet("large", tmp_path / "set")
    shrink(target, write_photos(tmp_path / "photos", side=512))
    truth = GroundTruth.read(target.annotations("val"), images=target.images("val"))
    assert truth.images[0].boxes[0].xywh == pytest.approx((5, 10, 20, 20))
    assert describe(target) == {
        "train_images": 2, "val_images": 2, "val_boxes": 2, "small": 2, "medium": 0, "large": 0,
    }  # fmt: skip


# ------------------------------------------------------------------------------ runs


def test_runs_are_ordered_so_that_partial_results_are_balanced(tmp_path: Path) -> None:
    names = [run.name for run in tiny_study(tmp_path).runs("ac")]
    assert names[:4] == ["codes-a-1", "codes-c-1", "bccd-a-1", "bccd-c-1"]
    assert names[4] == "codes-a-2"


@pytest.mark.slow
def test_a_killed_run_resumes_as_if_it_had_not_been(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study.runs("c")[0]
    train(run, QUIET)
    expected = (run.folder / MODEL_FILE).read_bytes()
    shutil.rmtree(run.folder)

    batch, steps = Pool.batch, iter(range(100))

    def killed(pool: Pool, numbers: list[int]) -> Any:
        if next(steps) == 1:  # in the second step
            raise KeyboardInterrupt
        return batch(pool, numbers)

    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.paper.accuracy_training._SAVE_SECONDS", 0.0)
        patched.setattr(Pool, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(run, QUIET)
    assert (run.folder / STATE_FILE).is_file()
    train(run, QUIET)
    assert (run.folder / MODEL_FILE).read_bytes() == expected


def test_a_signal_stops_a_run_that_then_continues(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, batch = study.runs("a")[0], Pool.batch

    def signalled(pool: Pool, numbers: list[int]) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return batch(pool, numbers)

    with monkeypatch.context() as patched:
        patched.setattr(Pool, "batch", signalled)
        with pytest.raises(TrainingStopped, match="SIGTERM") as stopped:
            train(run, QUIET)
    assert stopped.value.exit_status == 143
    assert not (run.folder / MODEL_FILE).exists()
    lines = io.StringIO()
    train(run, Console(file=lines))
    assert "continues at step 1" in lines.getvalue()


def test_the_command_ends_with_the_status_of_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_arguments: object) -> None:
        raise TrainingStopped(signal.SIGINT)

    (tmp_path / SETS_FILE).write_text("{}")
    command = ["accuracy", "run", "--folder", str(tmp_path), "--processes", "1"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr("os.nice", lambda _number: 0)
    monkeypatch.setattr(accuracy, "run_all", stop)
    with pytest.raises(SystemExit) as left:
        accuracy.main()
    assert left.value.code == 130
    assert "stopped by SIGINT; the same command continues" in capsys.readouterr().err


def test_every_arm_and_run_draws_each_image_once_an_epoch() -> None:
    first = [number for step in range(3) for number in drawn(6, 2, 1, step)]
    assert sorted(first) == list(range(6))
    assert first != [number for step in range(3) for number in drawn(6, 2, 2, step)]
    assert first != [number for step in range(3, 6) for number in drawn(6, 2, 1, step)]


def test_the_pool_has_what_the_backbone_computes(study: Study) -> None:
    images = study.image_set("codes")
    batch, maps = Pool(images, 4).batch([2, 0])
    assert [tuple(level.shape) for level in maps] == [
        (2, 40, 24, 32), (2, 112, 12, 16), (2, 320, 6, 8),
    ]  # fmt: skip
    assert batch.targets.present.sum() == 2
    assert batch.images.shape[:3] == batch.padding_mask.shape == (2, 192, 256)
    assert not batch.padding_mask[:, :150, :150].any()


def test_an_incomplete_pool_is_refused(study: Study) -> None:
    with pytest.raises(ValueError, match="run the command prepare"):
        Pool(study.image_set("codes"), 501)


def test_a_run_leaves_its_result_and_is_not_repeated(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(study, seeds=(1,), iterations={"codes": 1, "bccd": 1})
    run_all(study, "d", QUIET)
    results = [run.result() for run in study.runs("d")]
    assert [found["scores"]["num_images"] for found in results if found] == [2, 2]
    assert not list(study.folder.glob("runs/*/" + STATE_FILE))
    monkeypatch.setattr("benchmarks.paper.accuracy_runs.train", lambda *_: pytest.fail("again"))
    run_all(study, "d", QUIET)


def test_a_run_that_another_process_does_is_left_to_it(study: Study) -> None:
    study = replace(study, seeds=(1,))
    files = []
    for run in study.runs("a"):
        run.folder.mkdir(parents=True)
        files.append((run.folder / "lock").open("w"))
        fcntl.flock(files[-1], fcntl.LOCK_EX)
    run_all(study, "a", QUIET)
    for file in files:
        file.close()
    assert not any(run.result() for run in study.runs("a"))


def test_a_result_of_other_settings_is_refused(study: Study) -> None:
    run = study.runs("a")[0]
    pretend(run, 0.5)
    changed = replace(study, options={**study.options, "learning_rate": 0.5})
    with pytest.raises(ValueError, match="other settings"):
        changed.runs("a")[0].result()


# ------------------------------------------------------------------------------ report


def pretend(run: Run, ap: float) -> None:
    """Writes the result of a run that did not happen."""
    run.folder.mkdir(parents=True, exist_ok=True)
    scores = {name: ap for name in SCORE_NAMES}
    result = {"settings": run.settings(), "scores": scores}
    (run.folder / RESULT_FILE).write_text(json.dumps(result))


@pytest.fixture
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = {"a": 0.5, "b": 0.2, "c": 0.25, "d": 0.1}
    monkeypatch.setattr(
        accuracy_report,
        "gflops",
        lambda letter, _base: {"encoder": encoders[letter], "total": 1 + encoders[letter]},
    )


def report(study: Study) -> str:
    path = study.folder / "report"
    accuracy_report.write(study, REQUIRED, 0, path)
    assert path.with_suffix(".svg").read_text().startswith("<svg")
    json.loads(path.with_suffix(".json").read_text())
    return path.with_suffix(".md").read_text()


@pytest.mark.usefixtures("known_costs")
def test_a_report_without_runs_names_all_of_them(study: Study) -> None:
    text = report(study)
    assert "**0 of 16 runs done.**" in text
    assert "codes (a) 1, 2; codes (b) 1, 2;" in text and "bccd (d) 1, 2." in text


@pytest.mark.usefixtures("known_costs")
def test_a_partial_report_names_the_missing_runs(study: Study) -> None:
    for run in study.runs("ac"):
        if run.seed == 1:
            pretend(run, 0.4)
    text = report(study)
    assert "**4 of 16 runs done.**" in text
    assert "codes (a) 2;" in text and "codes (b) 1, 2;" in text
    assert "with 50.0% fewer encoder GFLOPs, over 1 of 2 seeds." in text
    assert "The aim of 60% fewer GFLOPs is missed." in text and "One pair has no interval." in text


@pytest.mark.usefixtures("known_costs")
@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ((1.01, 1.01), "The whole 95 % interval is at or above 99%."),
        ((0.9, 0.9), "The whole 95 % interval is below 99%."),
        ((0.9, 1.1), "these runs do not decide it"),
    ],
)
def test_the_report_says_what_the_runs_decide(
    study: Study, factors: tuple[float, float], words: str
) -> None:
    for run in study.runs("ac"):
        pretend(run, 0.4 * (factors[run.seed - 1] if run.arm.letter == "c" else 1))
    assert words in report(study)


@pytest.mark.usefixtures("known_costs")
def test_further_arms_are_compared_with_the_arm_that_differs_in_one_thing(study: Study) -> None:
    for run in study.runs("abcd"):
        pretend(run, 0.4)
    assert "Arms that differ in one thing" not in report(study)
    for run in replace(study, sets=("codes",)).runs("i"):
        pretend(run, 0.3 + 0.02 * run.seed)
    for run in replace(study, sets=("codes",), seeds=(2,), length=3).runs("bc"):
        pretend(run, 0.5)
    codes, bccd = report(study).split("## bccd")
    assert (
        "| (i) - (b) | KDA in the encoder, interleaved encoder | x1 | 2 | 40.0 | 33.0 | -7.00"
        in (codes)
    )
    assert (
        "KDA in encoder and decoder, interleaved encoder | x3 | 1 | 50.0 | 50.0 | 0.00 |" in codes
    )
    assert "Arms that differ in one thing" not in bccd


# ------------------------------------------------------------------------------ statistics


def test_the_interval_of_two_values() -> None:
    found = t_interval([1.0, 2.0])
    half = 12.706 * math.sqrt(0.5) / math.sqrt(2)  # Student's quantile with one degree of freedom
    assert found.low == pytest.approx(1.5 - half, abs=1e-3)
    assert found.high == pytest.approx(1.5 + half, abs=1e-3)
    assert t_interval([1.0]).low is None


@pytest.fixture
def crowded() -> GroundTruth:
    """Thirty images of up to five boxes of three classes; the last image has none."""
    rng = np.random.default_rng(1)
    images = []
    for number in range(1, 31):
        boxes = tuple(
            AnnotatedBox(int(rng.integers(1, 4)), (x, y, w, h), w * h)
            for x, y, w, h in rng.uniform(10, 60, (int(rng.integers(1, 6)), 4)).tolist()
        )
        images.append(ImageAnnotations(number, f"{number}.png", boxes if number < 30 else ()))
    return GroundTruth(tuple(images), {1: "one", 2: "two", 3: "three", 4: "never"})


def guesses(truth: GroundTruth) -> list[ImageDetections]:
    """Some boxes shifted a little, some with another class, and some that are nowhere."""
    rng = np.random.default_rng(2)
    found = []
    for image in truth.images:
        boxes = [box.xyxy for box in image.boxes for _ in range(2)]
        labels = [box.category_id for box in image.boxes for _ in range(2)]
        boxes.append((0.0, 0.0, 20.0, 20.0))
        labels.append(2)
        shifted = np.array(boxes, np.float32) + rng.uniform(-5, 5, (len(boxes), 4))
        other = np.where(rng.random(len(labels)) < 0.2, 1, labels)
        scores = rng.permutation(np.linspace(0.1, 0.9, len(labels)))
        detections = Detections(
            scores.astype(np.float32), other.astype(np.int64), shifted.astype(np.float32)
        )
        found.append(ImageDetections(image.image_id, detections, 0.0))
    return found


def test_weighted_ap_is_cocos_on_repeated_images(crowded: GroundTruth, tmp_path: Path) -> None:
    found = guesses(crowded)
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(coco_results(found)))
    matches = Matches(crowded, path)
    for weights in (np.ones(30), *choices(30, repeats=3)):
        chosen = np.repeat(np.arange(30), weights.astype(int)).tolist()
        images = tuple(
            replace(crowded.images[index], image_id=number)
            for number, index in enumerate(chosen, 1)
        )
        copies = [replace(found[index], image_id=number) for number, index in enumerate(chosen, 1)]
        expected = evaluate_coco(copies, GroundTruth(images, crowded.categories)).ap
        assert expected is not None and 0.1 < expected < 0.9
        assert matches.average_precision(weights) == pytest.approx(expected, abs=1e-6)


def test_choices_of_images_are_the_same_for_every_detector() -> None:
    first, second = choices(50, repeats=4), choices(50, repeats=4)
    assert np.array_equal(first, second)
    assert (first.sum(axis=1) == 50).all()
    assert len(np.unique(first, axis=0)) == 4


def test_a_detector_without_detections_has_no_ap(crowded: GroundTruth, tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    path.write_text("[]")
    assert Matches(crowded, path).average_precision(np.ones(30)) == 0.0


@pytest.mark.usefixtures("known_costs")
def test_equal_detectors_do_not_differ_over_images(study: Study) -> None:
    for run in study.runs("ac"):
        pretend(run, 0.4)
        (run.folder / "detections.json").write_text("[]")
    path = study.folder / "report"
    accuracy_report.write(study, REQUIRED, 10, path)
    assert "| (c) - (a) | 2 | 0.00 (0.00 .. 0.00) | 0.00 (0.00 .. 0.00) |" in path.with_suffix(
        ".md"
    ).read_text(encoding="utf-8")
