"""The CPU kernels of narrower processors than this one, against the reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from model.native import library
from model.ops import cpu, operators, reference
from tests.model.ops import test_bottleneck_training
from tests.model.ops.attention_cases import KINDS, assert_close, attend, gradients, random_case
from tests.model.ops.bottleneck_cases import Case, assert_right, images_of


@pytest.mark.slow
@pytest.mark.family
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
@pytest.mark.parametrize("target", ["x86-64-v3", "baseline"])
def test_narrower_vectors_give_the_reference_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str
) -> None:
    if target != "baseline" and "avx2" not in library._processor_features():
        pytest.skip("this processor has no AVX2")
    flags = () if target == "baseline" else (f"-march={target}",)
    monkeypatch.setattr(library, "_native_flags", lambda _processor: flags)
    built = library.load_library(library.ATTENTION, tmp_path)
    monkeypatch.setattr(cpu._kernels, "tried", False)
    monkeypatch.setattr(cpu._kernels, "library", None)
    monkeypatch.setattr(cpu, "load_any", lambda _sources: built)
    for kind in KINDS:
        for channels in (7, 16, 32, 64):
            case = random_case(kind, channels=channels, points=3)
            output, grads = gradients(operators, case, torch.float32)
            exact, exact_grads = gradients(reference, case, torch.float64)
            assert_close(output, exact)
            for name, grad in grads.items():
                assert_close(grad, exact_grads[name])
            narrow = case.mapped(torch.bfloat16)
            rounded = attend(reference, narrow.mapped(torch.float64))
            assert_close(attend(operators, narrow).float(), rounded, 2e-2)
    for size in ((31, 33), (100, 126)):
        assert_right(Case.random(), images_of(2, 3, *size))
    for block in test_bottleneck_training.KINDS.values():
        test_bottleneck_training.assert_gradients(block, (9, 13))
    assert cpu._kernels.library is built
