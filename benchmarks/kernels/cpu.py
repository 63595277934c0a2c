"""How much faster the compiled CPU kernels are than the official formula, in one run.

    python -m benchmarks.kernels.cpu [--repeats 5] [--threads 2]

The baseline is deformable attention the way the published models compute it in PyTorch: one
`grid_sample` a level for the values and, key-aware, a second one for the keys, both kept whole.
Both sides get the same inputs and take turns, so a busy machine slows both alike; compare
the ratios rather than the milliseconds. Prints a table, then the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model import ops

# An image of 800 x 1333 pixels at strides 8 to 64, and a training batch of 320 x 320 ones.
_PHOTO = ((100, 167), (50, 84), (25, 42), (13, 21))
_TRAINING = ((40, 40), (20, 20), (10, 10), (5, 5))
_POINTS = 4
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Setting:
    """One row: what is computed, and at which size."""

    name: str
    key_aware: bool
    spatial_shapes: tuple[tuple[int, int], ...]
    batch: int
    heads: int
    queries: int  # the last so many tokens ask; 900 stands for the decoder's boxes
    training: bool = False  # forward and backward
    channels: int = 32  # a head


@dataclass(frozen=True)
class Inputs:
    """Tensors of one setting, shaped as `model.ops` wants them."""

    value: Tensor
    reference_points: Tensor
    sampling_offsets: Tensor
    query: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Row:
    """Medians of one setting."""

    name: str
    queries: int
    official_ms: float
    compiled_ms: float
    ratio: float
    largest_difference: float


_DECODER_QUERIES = 900
_SETTINGS = (
    Setting("key-aware, all tokens", True, _PHOTO, 1, 8, 22_223),
    Setting("key-aware, high-level tokens", True, _PHOTO, 1, 8, 5_523),
    Setting("key-aware, decoder", True, _PHOTO, 1, 8, _DECODER_QUERIES),
    Setting("plain, all tokens", False, _PHOTO, 1, 8, 22_223),
    Setting("plain, high-level tokens", False, _PHOTO, 1, 8, 5_523),
    Setting("plain, decoder", False, _PHOTO, 1, 8, _DECODER_QUERIES),
    Setting("key-aware, training step", True, _TRAINING, 8, 4, 2_125, training=True),
    Setting("plain, training step", False, _TRAINING, 8, 4, 2_125, training=True),
)


def official_formula(setting: Setting, inputs: Inputs) -> Tensor:
    """The published computation: normalised positions, grid_sample a level, weighted sum."""
    levels = len(setting.spatial_shapes)
    if inputs.reference_points.shape[-1] == 4:  # noqa: PLR2004 - cxcywh
        centres, sizes = inputs.reference_points[..., :2], inputs.reference_points[..., 2:]
        steps = inputs.sampling_offsets / _POINTS * sizes[:, :, None, :, None] * 0.5
        locations = centres[:, :, None, :, None] + steps
    else:
        sizes = torch.tensor([[width, height] for height, width in setting.spatial_shapes])
        steps = inputs.sampling_offsets / sizes[:, None]
        locations = inputs.reference_points[:, :, None, :, None] + steps
    heads = (setting.batch * setting.heads, 1, setting.queries, levels * _POINTS)
    values = _sampled(setting, inputs.value, locations)  # [B*M, D, Q, L*P]
    if setting.key_aware:
        keys = _sampled(setting, inputs.value, locations)
        queries = inputs.query.transpose(1, 2).flatten(0, 1)  # [B*M, Q, D]
        scores = torch.einsum("bqd,bdqp->bqp", queries, keys) * setting.channels**-0.5
        weights = scores.softmax(-1).reshape(heads)
    else:
        weights = inputs.logits.softmax(-1).transpose(1, 2).reshape(heads)
    attended: Tensor = (values * weights).sum(-1)
    width = setting.heads * setting.channels
    return attended.view(setting.batch, width, setting.queries).transpose(1, 2).contiguous()


def _sampled(setting: Setting, tokens: Tensor, locations: Tensor) -> Tensor:
    grids = 2.0 * locations - 1.0
    areas = [height * width for height, width in setting.spatial_shapes]
    sampled = []
    for level, part in enumerate(tokens.split(areas, dim=1)):  # type: ignore[no-untyped-call]
        plane = part.flatten(2).transpose(1, 2)
        plane = plane.reshape(-1, setting.channels, *setting.spatial_shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(plane, grid, "bilinear", "zeros", align_corners=False))
    return torch.stack(sampled, dim=-2).flatten(-2)


def compiled_kernels(setting: Setting, inputs: Inputs) -> Tensor:
    """The same through `model.ops`."""
    located = (setting.spatial_shapes, inputs.reference_points, inputs.sampling_offsets)
    if setting.key_aware:
        return ops.key_aware_deform_attn(inputs.query, None, inputs.value, *located)
    return ops.ms_deform_attn(inputs.value, *located, inputs.logits)


def random_inputs(setting: Setting) -> Inputs:
    """Queries look around their own token; the decoder's look into boxes all over the image."""
    generator = torch.Generator().manual_seed(0)
    levels = len(setting.spatial_shapes)
    size = (setting.batch, setting.queries, setting.heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(setting.training)

    if setting.queries == _DECODER_QUERIES:
        boxes = torch.rand(setting.batch, setting.queries, 1, 4, generator=generator)
        references = boxes.repeat(1, 1, levels, 1)
    else:
        centres = torch.cat([_pixel_centres(*shape) for shape in setting.spatial_shapes])
        own = centres[-setting.queries :, None].expand(-1, levels, -1)
        references = own.expand(setting.batch, -1, -1, -1).contiguous()
    tokens = sum(height * width for height, width in setting.spatial_shapes)
    return Inputs(
        value=normal(setting.batch, tokens, setting.heads, setting.channels),
        reference_points=references,
        sampling_offsets=normal(*size, levels, _POINTS, 2),
        query=normal(*size, setting.channels),
        logits=normal(*size, levels * _POINTS),
    )


def _pixel_centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def measure(setting: Setting, repeats: int) -> Row:
    """Medians of both sides, which take turns after one unmeasured call each.

    Raises:
        RuntimeError: where the two sides disagree; timings would mean nothing.
    """
    inputs = random_inputs(setting)
    sides: Sequence[Callable[[Setting, Inputs], Tensor]] = (official_formula, compiled_kernels)
    exact, fast = (side(setting, inputs).detach() for side in sides)
    difference = float((exact - fast).abs().max())
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"{setting.name}: the two sides differ by {difference}")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, taken in zip(sides, times, strict=True):
            start = time.perf_counter()
            output = side(setting, inputs)
            if setting.training:
                output.sum().backward()  # type: ignore[no-untyped-call]
            taken.append(1e3 * (time.perf_counter() - start))
    official, compiled = map(statistics.median, times)
    ratio = round(official / compiled, 2)
    row_times = (round(official, 2), round(compiled, 2), ratio)
    return Row(setting.name, setting.queries, *row_times, largest_difference=difference)


def main() -> None:
    """Measures every setting and prints a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="measured calls a side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ops.select_implementation("cpu")
    print(f"{'':30} {'queries':>8} {'official ms':>12} {'compiled ms':>12} {'ratio':>7}")
    rows = []
    for setting in _SETTINGS:
        row = measure(setting, arguments.repeats)
        rows.append(asdict(row))
        times = f"{row.official_ms:12.1f} {row.compiled_ms:12.2f} {row.ratio:6.1f}x"
        print(f"{row.name:30} {row.queries:8} {times}", flush=True)
    facts = {"threads": arguments.threads, "repeats": arguments.repeats, "torch": torch.__version__}
    print(json.dumps({**facts, "machine": platform.machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
