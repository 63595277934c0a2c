"""Winograd convolutions equal plain ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from model.ops import winograd

pytestmark = pytest.mark.skipif(not winograd.available(), reason="needs the compiled kernels")


def _convolved(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, relu: bool
) -> torch.Tensor:
    """[B, H, W, C] -> [B, H, W, C'] by tiles."""
    matrices = winograd.kernels_at_points(weight).float()
    planes = torch.bmm(winograd.spread(x), matrices.transpose(1, 2))
    return winograd.gather([*planes], bias, tuple(x.shape[:3]), relu=relu)  # type: ignore[arg-type]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 16), (1, 4, 4, 16), (2, 5, 3, 32), (1, 3, 17, 16), (3, 9, 8, 48), (1, 26, 34, 64)],
    ids=str,
)
def test_tiles_give_the_plain_convolution(shape: tuple[int, int, int, int], relu: bool) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(32, shape[3], 3, 3, generator=generator) / (9 * shape[3]) ** 0.5
    bias = torch.randn(32, generator=generator)
    exact = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), bias.double(), padding=1)
    expected = (exact.relu() if relu else exact).permute(0, 2, 3, 1).float()
    found = _convolved(x, weight, bias, relu=relu)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_strided_map_is_read_as_it_is() -> None:
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)).permute(0, 2, 3, 1)
    assert torch.equal(winograd.spread(x), winograd.spread(x.contiguous()))


def test_nan_stays_in_its_own_tiles() -> None:
    x, weight = torch.ones(1, 8, 8, 16), torch.ones(16, 16, 3, 3)
    x[0, 0, 0, 0] = float("nan")
    found = _convolved(x, weight, torch.zeros(16), relu=True)
    assert found[0, 0, 0].isnan().all()
    assert not found[0, 5:, 5:].isnan().any()
