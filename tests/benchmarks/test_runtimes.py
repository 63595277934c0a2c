"""The baseline of the CPU benchmarks, and the comparison of runtimes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.model import cpu, runtimes
from benchmarks.model.plain_pytorch import plain_pytorch
from tests.model.network.test_detector import seeded, tiny


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_the_baseline_has_the_output_of_the_detector(backbone: str) -> None:
    detector = seeded(tiny(backbone=backbone))
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    with torch.inference_mode():
        expected = detector(images, mask)
        with plain_pytorch():
            found = detector(images, mask)
    torch.testing.assert_close(found.memory, expected.memory, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_sides_take_turns_and_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--rounds", "2", "--sizes", "64x64", "--sides", "ours", "pytorch"]
    monkeypatch.setattr(sys, "argv", ["runtimes", *arguments, "--output", str(tmp_path)])
    runtimes.main()
    ours, plain = json.loads((tmp_path / "runtimes.json").read_text())["rows"]
    assert (ours["side"], ours["wall_ratio"], ours["logit_difference"]) == ("ours", 1.0, 0.0)
    assert plain["side"] == "pytorch"
    assert plain["wall_ratio"] > 0
    assert plain["logit_difference"] < 1e-3
    assert "| 64x64 | pytorch |" in (tmp_path / "runtimes.md").read_text()


@pytest.mark.slow
@pytest.mark.family
def test_the_comparison_with_plain_pytorch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--models", "default", "--repeats", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cpu", *arguments])
    cpu.main()
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [row["side"] for row in rows] == ["plain", "fp32", "bf16", "int8"]
    assert rows[1]["largest_memory_difference"] < 1e-3
