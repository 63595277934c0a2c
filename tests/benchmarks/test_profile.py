"""The profile's parts are measured where they compute, in one call or layer by layer."""

from __future__ import annotations

import pytest
import torch

from benchmarks.model.profile import measure, to_markdown


# bfloat16 takes long on processors without it.
@pytest.mark.parametrize(
    "precision", ["fp32", pytest.param("bf16", marks=[pytest.mark.slow, pytest.mark.family])]
)
def test_each_part_is_measured(precision: str) -> None:
    with torch.inference_mode():
        rows = measure("default", precision, (64, 64), repeats=2)
    parts = {row.part: row for row in rows}
    whole = parts.pop("all")
    assert set(parts) == {"backbone", "projections", "encoder", "selection", "decoder"}
    assert all(part.total_ms > 0 and part.gflop > 0 for part in parts.values())
    assert sum(part.gflop for part in parts.values()) == pytest.approx(whole.gflop)
    assert len(to_markdown(rows).strip().splitlines()) == len(rows) + 2
