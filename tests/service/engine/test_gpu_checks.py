"""Checks of a network that was loaded on a GPU, and the numbers that it computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from model import VARIANTS, build_detector
from model.network import onednn, precision
from model.network.inference import prepare_for_inference
from model.ops import cuda
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from service.engine import load
from service.engine.gpu_checks import check_kernels, gives_finite_output
from tests.support.small_weights import write_small

SMALL = replace(VARIANTS["lite-dino-r18-small"], num_queries=20, encoder_layers=2, decoder_layers=2)


@pytest.fixture
def _settings_as_before() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    places = [
        (matmul, "allow_fp16_reduced_precision_reduction"),
        (matmul, "allow_bf16_reduced_precision_reduction"),
        (matmul, "allow_fp16_accumulation"),
        (matmul, "allow_tf32"),
        (cudnn, "allow_tf32"),
    ]
    before = [getattr(owner, name) for owner, name in places]
    yield
    for (owner, name), value in zip(places, before, strict=True):
        setattr(owner, name, value)


@pytest.mark.usefixtures("_settings_as_before")
def test_gpus_compute_without_tf32_and_with_float32_sums() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    precision.compute_exactly_on_gpus()
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"  # type: ignore[attr-defined]
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert not torch.backends.cuda.matmul.allow_fp16_accumulation


def _predictor(scale: float, dtype: torch.dtype) -> Predictor:
    torch.manual_seed(0)
    detector = build_detector(SMALL).eval()
    with torch.no_grad():
        detector.input_proj[0][0].bias.fill_(scale)  # type: ignore[index, union-attr]
    return Predictor(prepare_for_inference(detector, dtype), SMALL)


@pytest.mark.parametrize(
    ("scale", "dtype", "finite"),
    [
        (1.0, torch.float16, True),
        (1e6, torch.float16, False),  # beyond 65,504
        (1e6, torch.float32, True),
    ],
)
def test_a_network_beyond_the_range_of_its_type_is_found(
    scale: float, dtype: torch.dtype, finite: bool
) -> None:
    predictor = _predictor(scale, dtype)
    assert predictor.dtype == dtype
    assert gives_finite_output(predictor) is finite


@pytest.mark.parametrize("asked", ["auto", "fp32", "fp16", "bf16"])
@pytest.mark.parametrize("is_finite", [True, False])
def test_weights_beyond_the_range_of_the_chosen_precision_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, is_finite: bool
) -> None:
    """The path of a GPU, with the CPU as its device."""
    checked: list[str] = []
    write_small(tmp_path / "small.safetensors")
    detector, info = load_detector(tmp_path / "small.safetensors", "cpu")
    monkeypatch.setattr(load, "compute_exactly_on_gpus", lambda: checked.append("numbers"))
    monkeypatch.setattr(load, "check_fused_products", lambda *_: checked.append("products"))
    monkeypatch.setattr(load, "check_kernels", lambda *_: checked.append("kernels"))
    monkeypatch.setattr(load, "gives_finite_output", lambda _: is_finite)
    name, dtype = precision.resolve_precision(asked, "cuda")
    if is_finite or name == "fp32":
        assert load._load_on_gpu(detector, dtype, info, "cpu").dtype == dtype
    else:
        with pytest.raises(RuntimeError, match=f"range of precision={asked}; choose fp32"):
            load._load_on_gpu(detector, dtype, info, "cpu")
    assert checked == ["numbers", "products", "kernels"]


@pytest.mark.parametrize("changed", ["encoder", "decoder", "nan", "nothing"])
def test_kernels_that_compute_something_else_are_given_up(
    monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """On the CPU, with changed weights in the place of kernels."""
    torch.manual_seed(0)
    with onednn.not_used():  # layer by layer, as on a GPU
        network = prepare_for_inference(build_detector(SMALL).eval())
    given_up: list[str] = []

    @contextmanager
    def disabled() -> Iterator[None]:
        weight = cast(torch.Tensor, network.transformer.decoder.norm.weight)
        if changed == "encoder":
            layers = network.transformer.encoder.named_parameters()
            weight = next(tensor for name, tensor in layers if name.endswith("norm2.weight"))
        weight.mul_({"nan": torch.nan, "nothing": 1.0}.get(changed, 3.0))
        yield

    monkeypatch.setattr(cuda, "disabled", disabled)
    monkeypatch.setattr(cuda, "give_up", lambda _device, reason: given_up.append(reason))
    check_kernels(network, torch.device("cpu"))
    assert len(given_up) == (changed != "nothing")


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_small_model_serves_in_float16_with_fused_products(tmp_path: Path) -> None:
    write_small(tmp_path / "small.safetensors")
    predictor, _ = load.load_predictor(tmp_path / "small.safetensors", "cuda", precision="fp16")
    assert predictor.dtype == torch.float16
