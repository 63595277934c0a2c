"""The report at the end of a run, with odd class names and without detections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections, evaluate_coco
from model.training.final_report import RunResult, write_report
from model.training.report import LOG_FILE
from model.training.sources import CacheSource
from model.training.state import Position, TrainingStateError
from model.training.validation import Validation, ValidationSet
from tests.model.training.tiny import LABELS, tiny_options, tiny_trainer, write_cache


def _result(folder: Path, names: dict[int, str], found: Detections) -> RunResult:
    Image.new("RGB", (60, 40), "white").save(folder / "a.png")
    boxes = (AnnotatedBox(1, (5, 5, 20, 20), 400),)
    truth = GroundTruth((ImageAnnotations(1, "a.png", boxes),), names)
    predictions = (ImageDetections(1, found, 1.0),)
    validation = Validation(evaluate_coco(predictions, truth), predictions, 1.0)
    (folder / LOG_FILE).write_text('{"iteration": 2, "total": 3.0}\n', encoding="utf-8")
    data = ValidationSet(truth, folder, "one image")
    return RunResult(tiny_options(folder), Position(iteration=2), validation, data, 0.4, 8)


def _detections(*rows: tuple[float, int, tuple[float, ...]]) -> Detections:
    return Detections(
        np.array([score for score, _, _ in rows], np.float32),
        np.array([label for _, label, _ in rows], np.int64),
        np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
    )


def test_report_escapes_names_and_names_classes_without_boxes(tmp_path: Path) -> None:
    names = {1: "a|b", 2: "$x_{", 3: "細胞"}
    found = _detections((0.9, 2, (5, 5, 25, 25)), (0.8, 3, (40, 20, 50, 30)))
    files = write_report(_result(tmp_path, names, found))
    page = files[0].read_text(encoding="utf-8")
    assert r"| a\|b | 1 |" in page
    assert "Without a box in the validation images: \\$x\\_{, 細胞." in page
    assert r"| a\|b | \$x\_{ | 1 |" in page
    assert "Image a.png: 1 missed, 2 false." in page
    assert {file.name for file in files} >= {"f1.png", "confusion.png", "worst_1.jpg"}
    for file in files[1:]:
        with Image.open(file) as image:
            assert min(image.size) > 20


def test_report_without_detections(tmp_path: Path) -> None:
    page = write_report(_result(tmp_path, {1: "a"}, _detections()))[0].read_text(encoding="utf-8")
    assert "**AP50 0.000**" in page
    assert "| a | missed | 1 |" in page
    assert "| a | 1 | 0.000 | 0.000 | - | 0.000 | 0.000 |" in page  # precision of no detection


def test_report_without_matplotlib_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.training.final_report.find_spec", lambda _: None)
    page = write_report(_result(tmp_path, {1: "a"}, _detections()))[0].read_text(encoding="utf-8")
    assert "Charts need matplotlib" in page


def test_state_that_cannot_be_written_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CacheSource(write_cache(tmp_path / "cache"), LABELS)
    trainer = tiny_trainer(tiny_options(tmp_path / "run", max_iterations=1), source)
    (tmp_path / "run" / "last.pt").write_bytes(b"old")

    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(TrainingStateError, match=r"last\.pt cannot be written"):
        trainer._writer.save(replace(trainer.position))
    assert (tmp_path / "run" / "last.pt").read_bytes() == b"old"
    assert not list((tmp_path / "run").glob(".last.pt.*"))
