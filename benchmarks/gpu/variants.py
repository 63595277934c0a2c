"""The kernels that the parts of `run.sh` call, so that all of them can be compiled before.

Those of whole models are in `model.ops.cuda_ahead`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import get_args

import torch

from benchmarks.gpu import attention
from benchmarks.kernels import gpu, gradients
from benchmarks.kernels.gradients import TIMED_DTYPES
from model.ops import cpu
from model.ops.cuda_call import variant_of
from model.ops.nvrtc import TYPES, Kind, Variant
from model.ops.workloads import PHOTO, Workload, cast, random_inputs


@cache
def used_variants(seed: int = 0) -> frozenset[Variant]:
    """All kernels, for the default sizes of the parts and this seed of `check`."""
    found = {_of_workload(one, dtype) for one in attention.workloads() for dtype in TYPES}
    found |= {_of_workload(one, dtype) for one in gpu.repeated() for dtype in gpu.REPEATED_DTYPES}
    timed = {_of_workload(one, dtype) for one in gradients.workloads() for dtype in TIMED_DTYPES}
    for variant in (*timed, *_of_checks(seed), *_of_tests()):
        found |= {variant, *_backward(variant)}
    return frozenset(found)


def _of_workload(workload: Workload, dtype: torch.dtype) -> Variant:
    with torch.device("meta"):  # the sizes are all that is needed
        few = cast(random_inputs(replace(workload, batch=1)), dtype, "meta")
    shapes = [side for shape in workload.spatial_shapes for side in shape]
    located = (few.value, few.reference_points, few.sampling_offsets, shapes)
    if workload.key_aware:
        return variant_of(cpu.Inputs(*located, query=few.query))
    return variant_of(cpu.Inputs(*located, logits=few.logits))


def _of_checks(seed: int) -> Iterator[Variant]:
    """Those of the random shapes of `benchmarks.kernels.gpu` and `benchmarks.kernels.gradients`."""
    for sizes in gpu.random_sizes(seed):
        for dtype in gpu.TOLERANCES:
            call = gpu.random_call(random.Random(0), torch.device("cpu"), dtype, sizes)
            shapes = [side for shape in call.spatial_shapes for side in shape]
            located = (call.value, call.reference_points, call.sampling_offsets, shapes)
            yield variant_of(cpu.Inputs(*located, call.query, call.key, call.logits))


def _of_tests() -> Iterator[Variant]:
    """Those of the tests that need a GPU, in tests/model/ops/test_cuda.py."""
    for dtype in TYPES:
        some = _of_workload(Workload("tests", True, PHOTO, 1, 8, 509), dtype)
        for kind in get_args(Kind):
            yield replace(some, kind=kind)


def _backward(variant: Variant) -> Iterator[Variant]:
    for deterministic in (False, True):
        yield replace(variant, splits=1, backward=True, deterministic=deterministic)
