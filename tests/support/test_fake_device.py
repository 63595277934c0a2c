from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.fake_device import (
    FAKE_MODEL,
    FakeDevice,
    FakeDeviceSpec,
    FakeFault,
    fake_detections,
)


def _image(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((48, 64, 3), (red, green, blue), dtype=np.uint8)


def test_an_answer_follows_from_the_image_alone() -> None:
    device = FakeDevice(FakeDeviceSpec(0, 0))
    images = [_image(10, 20, 30), _image(200, 100, 0)]
    together = device.run(images, (64, 64), [(48, 64), (480, 640)]).detections
    for found, image, size in zip(together, images, [(48, 64), (480, 640)], strict=True):
        np.testing.assert_array_equal(found.boxes_xyxy, fake_detections(image, size).boxes_xyxy)


def test_boxes_lie_in_the_original_image_and_scores_fall() -> None:
    for colour in [(0, 0, 0), (255, 255, 255), (1, 2, 3), (7, 80, 200)]:
        found = fake_detections(_image(*colour), (480, 640))
        assert 1 <= len(found) <= 5
        assert (np.diff(found.scores) < 0).all()
        assert found.boxes_xyxy.min() >= 0
        assert (found.boxes_xyxy <= np.array([640, 480, 640, 480])).all()
        assert set(found.labels.tolist()) <= set(range(len(FAKE_MODEL.labels)))


def test_different_colours_get_different_answers() -> None:
    boxes = {
        fake_detections(_image(red, 0, 0), (480, 640)).boxes_xyxy.tobytes() for red in range(64)
    }
    assert len(boxes) == 64


def test_the_error_colour_raises() -> None:
    device = FakeDevice(FakeDeviceSpec(0, 0, error_colour="0A141E"))
    device.run([_image(10, 20, 31)], (64, 64), [(48, 64)])
    with pytest.raises(FakeFault):
        device.run([_image(1, 1, 1), _image(10, 20, 30)], (64, 64), [(48, 64)] * 2)


def test_a_batch_waits_while_its_gate_exists(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    device = FakeDevice(FakeDeviceSpec(0, 0, batch_gate=str(gate)))
    gate.touch()
    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(device.run, [_image(1, 2, 3)], (64, 64), [(48, 64)])
        assert not batch.done()
        gate.unlink()
        assert len(batch.result().detections) == 1


def test_the_model_has_a_name_for_each_class() -> None:
    assert len(FAKE_MODEL.labels) == FAKE_MODEL.config.num_classes
