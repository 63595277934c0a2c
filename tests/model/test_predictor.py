"""Resized images to detections in pixels of the original."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from model import build_detector
from model.detections import Detections
from model.network.outputs import DetectorOutput
from model.postprocess import drop_duplicates, select_detections
from model.predictor import Predictor
from tests.support import golden_case


def test_best_query_class_pairs_come_first_in_pixels_of_the_original() -> None:
    logits = torch.full((1, 3, 2), -9.0)
    logits[0, 1, 0], logits[0, 2, 1], logits[0, 2, 0] = 3.0, 1.0, 2.0
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.1, 0.2]]])
    (found,) = select_detections(logits, boxes, [(100, 200)], 3)
    assert found.labels.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.scores, torch.sigmoid(torch.tensor([3.0, 2.0, 1.0])))
    np.testing.assert_allclose(found.boxes_xyxy[0], [50, 25, 150, 75])
    np.testing.assert_allclose(found.boxes_xyxy[1], [40, 40, 60, 60], atol=1e-4)


def test_boxes_end_at_the_image() -> None:
    boxes = torch.tensor([[[0.9, 0.1, 0.6, 0.6]]])
    (found,) = select_detections(torch.zeros(1, 1, 1), boxes, [(10, 10)], 5)
    np.testing.assert_allclose(found.boxes_xyxy[0], [6, 0, 10, 4], atol=1e-5)


def test_duplicates_are_kept_unless_a_config_drops_them() -> None:
    logits = torch.tensor([[[3.0], [2.0], [1.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]])
    (every,) = select_detections(logits, boxes, [(100, 100)], 3)
    assert len(every) == 3
    (kept,) = select_detections(logits, boxes, [(100, 100)], 3, duplicate_iou=0.6)
    np.testing.assert_allclose(kept.scores, every.scores[[0, 2]])


def test_only_a_kept_detection_drops_others() -> None:
    # Three boxes in a row: the middle one overlaps both others, which do not overlap each other.
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], dtype=np.float32)
    scores = np.array([0.9, 0.8, 0.7], dtype=np.float32)
    chain = Detections(scores, np.array([0, 1, 0]), boxes)
    np.testing.assert_array_equal(drop_duplicates(chain, 0.4).boxes_xyxy, boxes[[0, 2]])


def test_empty_boxes_are_no_duplicates() -> None:
    boxes = np.zeros((2, 4), dtype=np.float32)
    points = Detections(np.ones(2, dtype=np.float32), np.zeros(2, dtype=np.int64), boxes)
    assert len(drop_duplicates(points, 0.5)) == 2


class Recorder(nn.Module):
    """A stand-in for the network that records its inputs."""

    def forward(self, images: torch.Tensor, padding_mask: torch.Tensor) -> DetectorOutput:
        self.images, self.padding_mask = images, padding_mask
        self.batches = [*getattr(self, "batches", ()), len(images)]
        batch = len(images)
        empty = torch.zeros(batch, 1, 1)
        return DetectorOutput(torch.zeros(batch, 1, 3), torch.zeros(batch, 1, 4), empty)


def test_images_are_normalised_and_padded_with_zeros() -> None:
    recorder = Recorder()
    predictor = Predictor(recorder, golden_case.CONFIG)
    grey = np.full((40, 50, 3), 255, dtype=np.uint8)
    predictor.predict([grey], (64, 64), [(80, 100)])
    assert recorder.images.shape == (1, 3, 64, 64)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(recorder.images[0, :, 0, 0], expected)
    assert recorder.padding_mask[0, :40, :50].sum() == 0
    assert recorder.padding_mask.sum() == 64 * 64 - 40 * 50
    assert recorder.images[recorder.padding_mask[:, None].expand(-1, 3, -1, -1)].abs().sum() == 0


def test_an_image_has_the_same_detections_alone_and_in_a_batch() -> None:
    detector = build_detector(golden_case.CONFIG)
    golden_case.fill_from_names(detector)
    predictor = Predictor(detector, golden_case.CONFIG)
    rng = np.random.default_rng(0)
    sizes = [(64, 96), (50, 70), (64, 64)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    together = predictor.predict(images, (64, 128), sizes)
    for image, size, batched in zip(images, sizes, together, strict=True):
        (alone,) = predictor.predict([image], (64, 128), [size])
        np.testing.assert_allclose(alone.scores, batched.scores, atol=1e-5)
        np.testing.assert_allclose(alone.boxes_xyxy, batched.boxes_xyxy, atol=0.05)


def test_a_cpu_runs_the_images_of_a_batch_one_by_one_and_a_gpu_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder()
    predictor = Predictor(recorder, golden_case.CONFIG)
    images, sizes = [np.zeros((64, 64, 3), np.uint8)] * 3, [(64, 64)] * 3
    assert len(predictor.predict(images, (64, 64), sizes)) == 3
    monkeypatch.setattr(Predictor, "runs_batches_whole", property(lambda _: True))
    assert len(predictor.predict(images, (64, 64), sizes)) == 3
    assert recorder.batches == [1, 1, 1, 3]


def test_an_empty_batch_has_no_detections() -> None:
    assert Predictor(Recorder(), golden_case.CONFIG).predict([], (64, 64), []) == []


def test_an_image_larger_than_its_bucket_is_refused() -> None:
    predictor = Predictor(Recorder(), golden_case.CONFIG)
    with pytest.raises(ValueError, match="does not fit bucket"):
        predictor.predict([np.zeros((65, 10, 3), np.uint8)], (64, 64), [(65, 10)])
