"""`lite-detr eval --coco`: a small set in COCO's layout, compared with pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.config import VARIANTS
from model.evaluation import protocol
from model.evaluation.saved_detections import partial_file
from model.labels import COCO_LABELS, named_classes
from model.predictor import Predictor
from model.published import PUBLISHED_AP
from model.weights.checkpoint import save_checkpoint
from service.cli import main
from tests.support.small_weights import SMALL, weights_of

pytestmark = pytest.mark.usefixtures("threads_as_before")

CONFIG = replace(
    SMALL,
    num_classes=91,
    num_queries=40,
    max_detections=120,
    shortest_side=96,
    longest_side=160,
    bucket_stride=32,
)
SIZES = ((120, 160), (160, 120), (96, 128), (200, 90), (120, 160), (128, 128))  # (H, W)
IDS = (139, 632, 285, 40000, 7, 8)  # not in ascending order, as in COCO's files
UNANNOTATED = 40000


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "coco.safetensors"
    save_checkpoint(
        path, weights_of(CONFIG), CONFIG, COCO_LABELS, score_threshold=0.3, name="small-coco"
    )
    return path


@pytest.fixture(scope="module")
def found(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A folder in COCO's layout, and the detections in its images."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    (root / "val2017").mkdir()
    (root / "annotations").mkdir()
    for image_id, size in zip(IDS, SIZES, strict=True):
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "val2017" / f"{image_id:012}.png")
    _write_annotations(root, [])
    results = root / "first.json"
    assert _evaluate(weights, root, "--results", str(results)) == 0
    rows = json.loads(results.read_text())
    _write_annotations(root, _annotations_near(rows))
    return root, rows


def _write_annotations(root: Path, annotations: list[dict[str, Any]]) -> None:
    document = {
        "images": [
            {"id": number, "file_name": f"{number:012}.png", "height": size[0], "width": size[1]}
            for number, size in zip(IDS, SIZES, strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in named_classes(COCO_LABELS)],
    }
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(document))


def _annotations_near(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Boxes near some of the detections, so that scores are neither 0 nor 1; one is a crowd."""
    rng = np.random.default_rng(1)
    sizes = dict(zip(IDS, SIZES, strict=True))
    annotations: list[dict[str, Any]] = []
    for row in rows[::7]:
        left, top, width, height = row["bbox"]
        if row["image_id"] == UNANNOTATED or width < 8 or height < 8:
            continue
        shift = rng.uniform(0, 0.3, 2)
        left, top = left + shift[0] * width, top + shift[1] * height
        rows_, columns = sizes[row["image_id"]]
        width, height = min(width, columns - left), min(height, rows_ - top)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": row["image_id"],
                "category_id": row["category_id"],
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": int(len(annotations) % 5 == 4),
            }
        )
    return annotations


def _evaluate(weights: Path, root: Path, *flags: str) -> int:
    return main(
        ["eval", "--coco", str(root), "--model", str(weights), "--device", "cpu", "--json", *flags]
    )


def _pycocotools(annotations: Path, results: Path) -> COCOeval:
    """COCO's own evaluation of a results file."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        scorer = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer


def test_scores_are_those_of_pycocotools_on_the_results_file(
    weights: Path,
    found: tuple[Path, list[Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = found
    results = tmp_path / "found.json"
    capsys.readouterr()
    assert _evaluate(weights, root, "--results", str(results), "--batch-size", "3") == 0
    scores = json.loads(capsys.readouterr().out)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100")
    ours = [-1 if scores[name] is None else scores[name] for name in names]
    annotations = root / "annotations" / "instances_val2017.json"
    theirs = _pycocotools(annotations, results)
    assert ours == pytest.approx(theirs.stats[:9].tolist(), abs=1e-9)
    assert 0.01 < scores["ap"] < 0.99
    assert scores["ap50"] > scores["ap"]
    rows = json.loads(results.read_text())
    assert {row["category_id"] for row in rows} <= {key for key, _ in named_classes(COCO_LABELS)}
    assert {row["image_id"] for row in rows} == set(IDS)
    assert not partial_file(results).exists()
    precision = theirs.eval["precision"][:, :, :, 0, -1]  # of all areas, 100 detections
    by_class = {
        COCO_LABELS[key]: precision[:, :, column].mean()
        for column, key in enumerate(theirs.params.catIds)
        if precision[:, :, column].min() > -1
    }
    assert {row["name"]: row["ap"] for row in scores["per_class"]} == pytest.approx(by_class)
    boxes = [
        box for box in json.loads(annotations.read_text())["annotations"] if not box["iscrowd"]
    ]
    for row in scores["per_class"]:
        mine = [box for box in boxes if COCO_LABELS[box["category_id"]] == row["name"]]
        images = {box["image_id"] for box in mine}
        assert (row["num_boxes"], row["num_images"]) == (len(mine), len(images))


def test_detections_are_those_of_detect_with_the_ids_of_coco(
    weights: Path, found: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, rows = found
    files = [str(root / "val2017" / f"{image_id:012}.png") for image_id in IDS]
    flags = ["--model", str(weights), "--device", "cpu", "--threshold", "0", "--coco"]
    capsys.readouterr()
    assert main(["detect", *flags, *files]) == 0
    annotations = json.loads(capsys.readouterr().out)["annotations"]
    known = {key for key, _ in named_classes(COCO_LABELS)}
    theirs = [
        (each["image_id"], each["category_id"], each["score"], *each["bbox"])
        for each in annotations
        if each["category_id"] in known  # outputs such as 12 are no category of COCO
    ]
    ours = [(each["image_id"], each["category_id"], each["score"], *each["bbox"]) for each in rows]
    assert len(ours) == len(theirs) > 100
    np.testing.assert_allclose(ours, theirs, atol=0.02)  # `detect` rounds to 0.01 pixels


class _Killed(BaseException):
    """Ends a run as a signal does: nothing catches it."""


def _stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the predictor end the run after some batches; returns the counted images."""
    predict = Predictor.predict
    counted: list[int] = []

    def counting(self: Predictor, images: Any, *arguments: Any) -> Any:
        if len(counted) == batches:
            raise _Killed
        counted.append(len(images))
        return predict(self, images, *arguments)

    monkeypatch.setattr(Predictor, "predict", counting)
    return counted


def test_a_stopped_run_resumes_and_gives_the_same_file(
    weights: Path,
    found: tuple[Path, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = found
    whole, results = tmp_path / "whole.json", tmp_path / "found.json"
    assert _evaluate(weights, root, "--results", str(whole)) == 0
    expected = json.loads(capsys.readouterr().out)
    with monkeypatch.context() as patched:
        _stop_after(4, patched)
        with pytest.raises(_Killed):
            _evaluate(weights, root, "--results", str(results))
    assert not results.exists()
    with partial_file(results).open("ab") as file:
        file.write(b'{"image_id":8,"sco')  # what a kill leaves of a line
    with monkeypatch.context() as patched:
        counted = _stop_after(10, patched)
        assert _evaluate(weights, root, "--results", str(results)) == 0
    captured = capsys.readouterr()
    assert len(counted) == len(IDS) - 4
    assert f"resuming: 4 of 6 images are in {partial_file(results)}" in captured.err
    assert results.read_bytes() == whole.read_bytes()
    assert not partial_file(results).exists()
    scores = json.loads(captured.out)
    scores["milliseconds_per_image"] = expected["milliseconds_per_image"]
    assert scores == expected


def test_ctrl_c_names_the_file_that_the_same_command_resumes_from(
    weights: Path,
    found: tuple[Path, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = found
    results = tmp_path / "found.json"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict", interrupt)
    assert _evaluate(weights, root, "--results", str(results)) == 130
    assert f"the same command resumes from {partial_file(results)}" in capsys.readouterr().err


@pytest.mark.slow  # starts the program twice
def test_a_killed_process_resumes(
    weights: Path, found: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    root, _ = found
    results = tmp_path / "found.json"
    command = [sys.executable, "-m", "service", "eval", "--coco", str(root), "--device", "cpu"]
    command += ["--model", str(weights), "--results", str(results), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    partial = partial_file(results)
    while process.poll() is None and not (partial.exists() and partial.stat().st_size > 4000):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.kill()
    process.communicate()
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert _evaluate(weights, root, "--results", str(tmp_path / "whole.json")) == 0
    assert results.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert "images/s" not in done.stderr  # no bar without a terminal


def test_detections_of_another_run_are_not_mixed_in(
    weights: Path,
    found: tuple[Path, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = found
    results = tmp_path / "found.json"
    with monkeypatch.context() as patched:
        _stop_after(2, patched)
        with pytest.raises(_Killed):
            _evaluate(weights, root, "--results", str(results))
    before = partial_file(results).read_bytes()
    assert _evaluate(weights, root, "--results", str(results), "--precision", "bf16") == 2
    error = capsys.readouterr().err
    assert "another run, whose precision is fp32, not bf16" in error
    assert _evaluate(weights, root, "--results", str(results), "--jpeg-decoding", "scaled") == 2
    assert "whose jpeg_decoding is exact, not scaled" in capsys.readouterr().err
    assert partial_file(results).read_bytes() == before
    flags = ("--results", str(results), "--precision", "bf16", "--overwrite")
    assert _evaluate(weights, root, *flags) == 0
    assert "resuming" not in capsys.readouterr().err


def test_a_file_of_something_else_is_never_replaced_by_the_detections_so_far(
    weights: Path,
    found: tuple[Path, list[Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = found
    other = tmp_path / "found.json.partial"
    other.write_text("my notes")
    flags = ("--results", str(tmp_path / "found.json"), "--overwrite")
    assert _evaluate(weights, root, *flags) == 2
    assert "is something else" in capsys.readouterr().err
    assert other.read_text() == "my notes"


def test_an_image_that_breaks_off_is_named_and_nothing_else_is_lost(
    weights: Path,
    found: tuple[Path, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = found
    file = root / "val2017" / f"{IDS[1]:012}.png"
    whole = file.read_bytes()
    results = tmp_path / "found.json"
    try:
        file.write_bytes(whole[: len(whole) // 2])  # its header is intact
        assert _evaluate(weights, root, "--results", str(results)) == 1
    finally:
        file.write_bytes(whole)
    captured = capsys.readouterr()
    assert file.name in captured.err
    assert "1 image could not be read and count" in captured.err
    assert len(json.loads(captured.out)["unreadable_images"]) == 1
    assert not results.exists()
    with monkeypatch.context() as patched:
        counted = _stop_after(10, patched)
        assert _evaluate(weights, root, "--results", str(results)) == 0
    assert counted == [1]
    assert {row["image_id"] for row in json.loads(results.read_text())} == set(IDS)


def test_published_ap_is_compared_on_all_of_val2017_only(
    weights: Path,
    found: tuple[Path, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = found
    flags = ["eval", "--coco", str(root), "--model", str(weights), "--device", "cpu"]
    monkeypatch.setitem(PUBLISHED_AP, CONFIG.name, 49.9)
    monkeypatch.setitem(VARIANTS, CONFIG.name, CONFIG)
    capsys.readouterr()
    assert main([*flags, "--limit", "1"]) == 0
    assert "not compared with the published AP, 49.9" in capsys.readouterr().out
    monkeypatch.setattr(protocol, "VAL2017_IMAGES", len(IDS))
    monkeypatch.setattr(protocol, "_VAL2017_IDS", protocol._digest(IDS))
    assert main(flags) == 0
    output = capsys.readouterr().out
    assert "published AP 49.9, here " in output
    assert "no score threshold; the 120 best detections of an image" in output
    assert "no duplicate removal" in output


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "--annotations is missing"),
        (["--annotations", "a.json"], "--images is missing"),
        (["--coco", "x", "--images", "y"], "--images and --coco exclude each other"),
        (["--data", "x", "--coco", "y"], "--data and --coco exclude each other"),
        (["--data", "x", "--annotations", "a.json", "--images", "y"], "--data and --annotations"),
        (["--annotations", "a.json", "--images", ".", "--split", "val2017"], "--split is for"),
        (["--data", "no-such-folder"], "no-such-folder: there is no such file or folder"),
    ],
)
def test_the_data_set_is_named_in_one_way(
    flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *flags]) == 2
    assert problem in capsys.readouterr().err
