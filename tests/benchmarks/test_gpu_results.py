"""Result files of the GPU measurement, and its report page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks.gpu import page, pipeline, results, service_throughput
from benchmarks.gpu.ceilings import measure_ceilings
from model.detections import Detections


def test_an_error_of_a_measurement_is_a_failure_and_the_next_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results.Results(tmp_path / "part.jsonl", torch.device("cpu"))
    with found.guarded("first"):
        raise RuntimeError("no engine\nfor this size")
    with found.guarded("second"):
        raise torch.OutOfMemoryError("2 GiB short")
    with found.guarded("third"):
        found.row(figure=1)
    lines = results.read(tmp_path / "part.jsonl")[1:]
    assert lines == [
        {"kind": "failure", "text": "first: RuntimeError: no engine"},
        {"kind": "left out", "text": "second: out of memory"},
        {"kind": "row", "figure": 1},
    ]
    assert found.exit_status == 1
    assert "for this size" in capsys.readouterr().err


def test_rates_of_copies_and_products_are_measured(tmp_path: Path) -> None:
    found = results.Results(tmp_path / "part.jsonl", torch.device("cpu"))
    measure_ceilings(torch.device("cpu"), found, small=True)
    row = results.read(tmp_path / "part.jsonl")[1]
    assert row["terabytes_per_second"] > 0 and row["teraflops"] > 0
    assert row["ceilings"] == "cpu"


def test_a_lost_gpu_ends_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results.Results(tmp_path / "part.jsonl", torch.device("cpu"))

    def lost() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(found, "_on_gpu", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(RuntimeError, match="illegal"), found.guarded("first"):
        raise ValueError("a result of a lost context")
    assert results.read(tmp_path / "part.jsonl")[1]["kind"] == "failure"


def test_results_that_differ_in_a_duplicate_are_compared() -> None:
    boxes = np.zeros((3, 4), dtype=np.float32)
    scores, labels = np.array([0.9, 0.5, 0.2], dtype=np.float32), np.zeros(3, dtype=np.int64)
    whole = Detections(scores, labels, boxes)
    without = Detections(scores[:2], labels[:2], boxes[:2])
    assert pipeline._score_difference(whole, whole) == 0.0
    assert pipeline._score_difference(whole, without) == pytest.approx(0.2)
    assert pipeline._box_difference(without, whole) == 0.0
    nothing = Detections(scores[:0], labels[:0], boxes[:0])
    assert pipeline._score_difference(nothing, nothing) == 0.0


def test_the_report_compares_figures_with_goals(tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, object]]] = {
        "attention": [
            {"attention": "key-aware", "queries": 22_223, "dtype": "float16", "kernel_us": 38.5},
            {"attention": "key-aware", "queries": 22_223, "dtype": "float16", "kernel_us": 38.5}
            | {"formula_float32_us": 1155.0},
            {"attention": "plain", "queries": 22_223, "dtype": "float16", "kernel_us": 44.0}
            | {"original_kernel_us": 330.0},
        ],
        "r50": [
            {"precision": "fp16", "batch": batch, "replayed": replayed}
            for batch, replayed in (
                (1, {"card_ms": 3.7, "whole_ms": 5.5}),
                (32, {"overlapped_images_per_second": 480.0}),
            )
        ],
    }
    for name, found in rows.items():
        lines: list[dict[str, object]] = [{"kind": "conditions", "device": "a GPU"}]
        lines += [{"kind": "row", **row} for row in found]
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "ro'
        (tmp_path / f"{name}.jsonl").write_text(text)
    counters = (
        '{"kind": "row"}\n==PROF== Profiling\n  lite_detr_deform_attn\n    lts__t_bytes.sum 1\n'
    )
    (tmp_path / "counters.txt").write_text(counters)
    report = page.report(tmp_path)
    assert "device a GPU" in report
    assert "```\n  lite_detr_deform_attn\n    lts__t_bytes.sum 1\n```" in report
    assert "| 38.5 µs | 36 | ≤ 40 µs | reached |" in report
    assert "| 44 µs | 28 | ≤ 35 µs | missed |" in report
    assert "| 30 x |  | ≥ 25 x | reached |" in report
    assert "| 7.5 x |  | ≥ 7 x | reached |" in report
    assert "| 3.7 ms | 2.8 | ≤ 4 ms | reached |" in report
    assert "| 480 images/s | 701 | ≥ 500 images/s | missed |" in report
    assert "| not measured |" in report


def test_batches_of_a_load_are_those_since_its_start() -> None:
    texts = [
        "# HELP lite_detr_batch_size x\nlite_detr_batch_seconds_sum 1.5\n"
        f"lite_detr_batch_seconds_count {count}\nlite_detr_batch_size_sum {images}.0\n"
        'lite_detr_batch_size_bucket{le="1.0"} 3\n'
        for count, images in ((10, 20), (30, 180))
    ]
    service = SimpleNamespace(get=lambda _path: (200, texts.pop(0).encode()))
    before, after = (service_throughput._totals(cast(Any, service)) for _ in range(2))
    ran = {name: total - before[name] for name, total in after.items()}
    assert service_throughput._of_batches(ran | {"lite_detr_batch_seconds_sum": 6.0}, 8.0) == {
        "images_of_a_batch": 8.0,
        "batch_seconds_per_second": 0.75,
    }


def test_a_result_file_that_was_cut_off_is_read(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    path.write_text('{"kind": "row", "a": 1}\n{"kind": "row", "a"')
    assert results.read(path) == [{"kind": "row", "a": 1}]
