"""The computation that a CUDA graph records transfers nothing between device and host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from model import VARIANTS, ModelConfig, build_detector, ops
from model.network import onednn
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.network.position_encoding import known_constants
from model.ops import operators, reference
from model.postprocess import best_pairs, to_detections
from model.predictor import Predictor, padding_of
from tests.support import golden_case
from tests.support.host_transfers import (
    ForbidHostTransfers,
    HostTransferError,
    tensors_of,
    to_meta,
)

BUCKET = (256, 320)


@pytest.fixture(params=[operators, reference], ids=["kernels", "reference"])
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """torch's matrix products, and our operators or their reference on any device."""
    monkeypatch.setattr(onednn, "is_available", lambda *_: False)
    monkeypatch.setattr(ops, "_implementation", lambda *_: request.param)


def _predictor_of_shapes(config: ModelConfig, dtype: torch.dtype) -> Predictor:
    network = prepare_for_inference(build_detector(config), dtype)
    to_meta(network)
    return Predictor(network, config, "meta")


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float16], ids=str
)
@pytest.mark.parametrize(
    "name",
    [
        "lite-dino-efficientnet-lite0",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "lite-dino-r50-h3l1-2p1x3",
                "lite-h-detr-swint-h3l1-2p1x3",
                "deformable-detr-r50",
            )
        ),
    ],
)
def test_detect_makes_no_host_transfers(name: str, dtype: torch.dtype) -> None:
    predictor = _predictor_of_shapes(VARIANTS[name], dtype)
    pixels = torch.empty(3, *BUCKET, 3, dtype=torch.uint8, device="meta")
    sizes = torch.empty(3, 2, dtype=torch.int32, device="meta")
    network = predictor._detector
    assert isinstance(network, LiteDETR)
    given = [pixels, sizes, predictor._mean, predictor._scale, *known_constants()]
    with ForbidHostTransfers([*given, *tensors_of(network)]) as watch:
        found = predictor.detect(pixels, sizes)
    assert found.shape == (3, VARIANTS[name].max_detections, 6)
    assert found.dtype == torch.float32
    assert any("topk" in operation for operation in watch.operations)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x[..., [1, 0, 2, 3]],
        lambda x: x * torch.as_tensor(2.0, device=x.device),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]).to(x.device),
        lambda x: x * x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
    ],
)
def test_host_transfers_are_detected(compute: Callable[[Tensor], object]) -> None:
    given = torch.empty(3, 4, device="meta")
    errors = (HostTransferError, RuntimeError, NotImplementedError)
    with pytest.raises(errors), torch.inference_mode(), ForbidHostTransfers([given]):
        compute(given)


def test_a_padding_mask_follows_from_sizes() -> None:
    mask = padding_of(torch.tensor([[2, 3], [4, 1]], dtype=torch.int32), (4, 5))
    expected = np.ones((2, 4, 5), dtype=np.bool_)
    expected[0, :2, :3] = expected[1, :4, :1] = False
    np.testing.assert_array_equal(mask.numpy(), expected)


def test_the_gpu_path_gives_the_detections_of_the_cpu_path() -> None:
    detector = build_detector(golden_case.CONFIG)
    golden_case.fill_from_names(detector)
    predictor = Predictor(detector, golden_case.CONFIG)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (expected,) = predictor.predict([image], (64, 128), [(100, 140)])
    # The padding's contents must not matter: a buffer keeps those of an earlier batch.
    pixels = torch.from_numpy(rng.integers(0, 256, (1, 64, 128, 3), dtype=np.uint8))
    pixels[0, :50, :70] = torch.from_numpy(image)
    rows = predictor.detect(pixels, torch.tensor([[50, 70]], dtype=torch.int32)).numpy()
    (found,) = to_detections(rows, [(100, 140)])
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_detections_share_no_memory_with_their_rows() -> None:
    rows = best_pairs(torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.5), 5).numpy()
    found = to_detections(rows, [(10, 20), (30, 40)])
    before = [(one.scores.copy(), one.labels.copy(), one.boxes_xyxy.copy()) for one in found]
    rows[:] = -1.0
    for one, (scores, labels, boxes) in zip(found, before, strict=True):
        np.testing.assert_array_equal(one.scores, scores)
        np.testing.assert_array_equal(one.labels, labels)
        np.testing.assert_array_equal(one.boxes_xyxy, boxes)
