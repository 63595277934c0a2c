"""Tests of the synthetic code images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

zxingcpp = pytest.importorskip("zxingcpp", reason="zxing-cpp, which draws the codes, is missing")
pytest.importorskip("cv2", reason="OpenCV, which draws the scenes, is missing")

from model.data.errors import OutputError  # noqa: E402
from model.training.codes import CLASS_NAMES, Scene, cache, generate_scene  # noqa: E402
from model.training.codes.labels import Layout, Sheet, make_label  # noqa: E402
from model.training.codes.symbols import LINEAR, Symbol, random_symbol  # noqa: E402
from model.training.codes.warp import Bend, Pose, homography, mark_extent, paste  # noqa: E402

_SCENES = 150


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(np.random.default_rng([3, i]), max_side=256) for i in range(_SCENES)]


def _class_of(name: str) -> int:
    for index, part in enumerate(("QR", "Data Matrix", "Aztec", "PDF417")):
        if part in name:
            return index
    return LINEAR


def _black_on_white(symbol: Symbol, cell: float) -> Sheet:
    palette = (np.full(3, 255, np.float32), np.zeros(3, np.float32))
    layout = Layout((10, 10, 10, 10), extras=False, crisp=True, palette=palette)
    return make_label(np.random.default_rng(0), symbol, cell, layout)


def _dark_bounds(image: np.ndarray) -> list[int]:
    dark = image.mean(2) < 128
    ys, xs = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1]


def test_same_seed_gives_the_same_scene() -> None:
    for seed in range(12):
        first, second = (generate_scene(np.random.default_rng(seed), None, 192) for _ in range(2))
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)
        assert first.payloads == second.payloads


def test_different_seeds_give_different_scenes(scenes: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_types_shapes_and_bounds(scenes: list[Scene]) -> None:
    for scene in scenes:
        height, width = scene.image.shape[:2]
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (height, width, 3)
        assert max(height, width) <= 256
        assert scene.boxes_xyxy.dtype == np.float32
        assert scene.boxes_xyxy.shape == (len(scene.labels), 4)
        assert scene.labels.dtype == np.int64
        assert len(scene.payloads) == len(scene.labels)
        assert (scene.boxes_xyxy >= 0).all()
        assert (scene.boxes_xyxy <= [width, height, width, height]).all()
        assert (scene.boxes_xyxy[:, 2:] > scene.boxes_xyxy[:, :2]).all()


def test_a_given_size_is_kept() -> None:
    for seed in range(30):
        scene = generate_scene(np.random.default_rng(seed), size=(120, 200))
        assert scene.image.shape == (120, 200, 3)
        assert (scene.boxes_xyxy <= [200, 120, 200, 120]).all()


def test_about_a_third_are_negatives(scenes: list[Scene]) -> None:
    share = sum(not len(scene.labels) for scene in scenes) / len(scenes)
    assert 0.22 < share < 0.46


def test_every_class_appears_and_sizes_vary(scenes: list[Scene]) -> None:
    labels = np.concatenate([scene.labels for scene in scenes])
    assert set(labels.tolist()) == set(range(len(CLASS_NAMES)))
    shares = []
    for scene in scenes:
        area = scene.image.shape[0] * scene.image.shape[1]
        shares += [float(np.prod(box[2:] - box[:2])) / area for box in scene.boxes_xyxy]
    assert min(shares) < 0.05
    assert max(shares) > 0.9


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)), ids=CLASS_NAMES)
def test_most_clean_symbols_decode_as_their_class(label: int) -> None:
    read = 0
    for seed in range(20):
        symbol = random_symbol(np.random.default_rng([label, seed]), label)
        assert symbol.label == label
        found = zxingcpp.read_barcodes(_black_on_white(symbol, 4.0).colour)
        read += any(_class_of(str(code.format)) == label for code in found)
    assert read >= 15


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)), ids=CLASS_NAMES)
def test_a_mark_bounds_the_ink_of_a_flat_label(label: int) -> None:
    for seed in range(6):
        symbol = random_symbol(np.random.default_rng([label, seed]), label)
        bits = symbol.bits
        if not (bits[0].any() and bits[-1].any() and bits[:, 0].any() and bits[:, -1].any()):
            continue
        sheet = _black_on_white(symbol, 3.0)
        np.testing.assert_allclose(sheet.marks[0].box, _dark_bounds(sheet.colour), atol=1)


@pytest.mark.parametrize(
    "bend",
    [Bend(), Bend(arc=0.9, bow=0.2), Bend(vertical=True, arc=0.6), Bend(wave=0.05, turns=4)],
    ids=["flat", "cylinder", "vertical", "waves"],
)
def test_a_box_bounds_the_ink_after_the_warp(bend: Bend) -> None:
    symbol = Symbol(np.ones((20, 30), np.bool_), LINEAR, "", "", "block")
    sheet = _black_on_white(symbol, 4.0)
    size = (sheet.colour.shape[1], sheet.colour.shape[0])
    rng = np.random.default_rng(5)
    pose = Pose(homography(rng, size, (200.0, 200.0), 0.4, 0.4), bend)
    image = np.full((400, 400, 3), 255, np.uint8)
    paste(image, sheet, pose)
    box = mark_extent(sheet.marks[0], sheet, pose)
    np.testing.assert_allclose(box, _dark_bounds(image), atol=1.6)


def test_bending_back_undoes_bending() -> None:
    points = np.random.default_rng(1).uniform(5, 95, (50, 2)).astype(np.float32)
    for bend in (Bend(arc=1.1, bow=0.3), Bend(vertical=True, wave=0.06, turns=5, phase=1)):
        bent = bend.forward(points, (100, 100))
        x, y = bend.backward(bent[:, 0], bent[:, 1], (100, 100))
        np.testing.assert_allclose(np.stack([x, y], 1), points, atol=0.01)


def test_the_cache_resumes_where_it_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cache.build(whole, 8, seed=4, max_side=96) == 8
    assert cache.build(parts, 3, seed=4, max_side=96) == 3
    with (parts / "scenes.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"file": "torn')
    assert cache.build(parts, 8, seed=4, max_side=96) == 5
    assert cache.build(parts, 8, seed=4, max_side=96) == 0
    assert (whole / "scenes.jsonl").read_text() == (parts / "scenes.jsonl").read_text()
    for file in sorted(whole.glob("*.jpg")):
        assert file.read_bytes() == (parts / file.name).read_bytes()


def test_the_cache_writes_coco_annotations(tmp_path: Path) -> None:
    cache.build(tmp_path, 6, seed=4, max_side=96)
    document = json.loads((tmp_path / "annotations.json").read_text())
    records = cache.read_records(tmp_path / "scenes.jsonl")
    assert [image["file_name"] for image in document["images"]] == [r["file"] for r in records]
    assert [category["name"] for category in document["categories"]] == list(CLASS_NAMES)
    boxes = [box for record in records for box in record["boxes"]]
    assert len(document["annotations"]) == len(boxes)
    for entry, box in zip(document["annotations"], boxes, strict=True):
        left, top, wide, high = entry["bbox"]
        assert [left, top, left + wide, top + high] == pytest.approx(box, abs=0.02)


def test_the_cache_replaces_other_files_only_on_request(tmp_path: Path) -> None:
    own = tmp_path / "annotations.json"
    own.write_text("mine")
    with pytest.raises(OutputError, match=r"other files, such as annotations\.json"):
        cache.build(tmp_path, 1, seed=4, max_side=96)
    assert [file.name for file in tmp_path.iterdir()] == ["annotations.json"]
    cache.build(tmp_path, 1, seed=4, max_side=96, overwrite=True)
    first = (tmp_path / "0000000.jpg").read_bytes()
    with pytest.raises(OutputError, match="'seed': 4"):
        cache.build(tmp_path, 1, seed=5, max_side=96)
    assert (tmp_path / "0000000.jpg").read_bytes() == first
    assert cache.build(tmp_path, 1, seed=5, max_side=96, overwrite=True) == 1
