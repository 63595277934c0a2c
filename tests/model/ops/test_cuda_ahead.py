"""GPU kernels compiled ahead of time are those that the networks call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import build_detector
from model.config import VARIANTS, ModelConfig
from model.native.library import BuildError
from model.network import deformable_attention
from model.ops import cuda_ahead, nvrtc
from model.ops.cpu import Inputs
from model.ops.cuda_call import variant_of
from model.ops.nvrtc import Kernel, Variant, machine_code

DEFAULT = VARIANTS["lite-dino-efficientnet-lite0"]


@pytest.fixture
def _nvrtc_is_here() -> None:
    try:
        nvrtc._compiler()
    except BuildError as error:
        pytest.skip(f"the GPU kernels cannot be compiled here: {error}")


def recorded(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> set[Variant]:
    """The kernels that a network calls for a small image, recorded while it runs on the CPU."""
    seen: set[Variant] = set()

    def flat(shapes: Any) -> list[int]:
        return [side for shape in shapes for side in shape]

    def plain(*given: Any) -> Any:
        value, shapes, points, offsets, logits, _valid_ratios = given
        inputs = Inputs(value, points, offsets, flat(shapes), logits=logits)
        seen.add(variant_of(inputs))
        return original["ms_deform_attn"](*given)

    def key_aware(*given: Any) -> Any:
        query, key, value, shapes, points, offsets, _valid_ratios = given
        inputs = Inputs(value, points, offsets, flat(shapes), query=query, key=key)
        seen.add(variant_of(inputs))
        return original["key_aware_deform_attn"](*given)

    original = {
        name: getattr(deformable_attention, name)
        for name in ("ms_deform_attn", "key_aware_deform_attn")
    }
    monkeypatch.setattr(deformable_attention, "ms_deform_attn", plain)
    monkeypatch.setattr(deformable_attention, "key_aware_deform_attn", key_aware)
    network = build_detector(config).eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, 128, 128), torch.zeros(1, 128, 128, dtype=torch.bool))
    return seen


@pytest.mark.parametrize(
    "config",
    [
        VARIANTS["lite-dino-efficientnet-lite0"],
        VARIANTS["lite-dino-r18-small"],
        VARIANTS["dino-r50-4scale"],
        replace(VARIANTS["lite-dino-r18-small"], name="plain-decoder", key_aware_decoder=False),
    ],
    ids=lambda config: config.name,
)
def test_kernels_are_those_that_the_network_calls(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = recorded(config, monkeypatch)
    of_float32 = {v for v in cuda_ahead.variants_of(config) if v.value_type == torch.float32}
    assert called <= of_float32
    # The rest is for maps of more tokens.
    assert {replace(v, splits=4) for v in of_float32} == called


def test_kernels_of_training_are_those_of_both_passes() -> None:
    forward = cuda_ahead.variants_of(DEFAULT)
    both = cuda_ahead.variants_of(DEFAULT, training=True)
    assert forward < both
    backward = {v for v in both if v.backward}
    assert {replace(v, splits=1) for v in forward} == {replace(v, backward=False) for v in backward}


@pytest.mark.parametrize("training", [False, True])
def test_kernels_of_the_backward_pass_are_built_if_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    built: list[Kernel] = []

    def build(variant: Kernel, *_arguments: object, **_options: object) -> None:
        built.append(variant)

    monkeypatch.setattr(cuda_ahead, "machine_code", build)
    monkeypatch.setattr(cuda_ahead, "VARIANTS", {"default": DEFAULT})
    monkeypatch.setattr(cuda_ahead, "DIRECTORY", tmp_path / "compiled")
    assert cuda_ahead.main(["--architectures", "90", *["--training"] * training]) == 0
    attention = cuda_ahead.variants_of(DEFAULT, training=training)
    assert set(built) == attention | cuda_ahead.norms_of(DEFAULT)
    assert any(variant.backward for variant in attention) == training


@pytest.mark.slow
@pytest.mark.usefixtures("_nvrtc_is_here")
def test_kernels_built_ahead_are_loaded_without_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_ahead, "VARIANTS", {"default": DEFAULT})
    monkeypatch.setattr(cuda_ahead, "DIRECTORY", tmp_path / "compiled")
    monkeypatch.setattr(nvrtc, "DIRECTORY", tmp_path / "compiled")
    assert cuda_ahead.main(["--architectures", "90"]) == 0
    files = list((tmp_path / "compiled").iterdir())
    wanted = cuda_ahead.variants_of(DEFAULT) | cuda_ahead.norms_of(DEFAULT)
    assert len(files) == len(wanted)
    monkeypatch.setattr(nvrtc, "_compile", None)  # calling it would fail
    for variant in wanted:
        assert machine_code(variant, (9, 0), tmp_path / "never used")
    assert not (tmp_path / "never used").exists()


def test_missing_nvrtc_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise BuildError("no NVRTC")

    monkeypatch.setattr(nvrtc, "_compiler", missing)
    monkeypatch.setattr(cuda_ahead, "DIRECTORY", tmp_path / "compiled")
    assert cuda_ahead.main(["--architectures", "90"]) == 1
    assert "no NVRTC" in capsys.readouterr().err
