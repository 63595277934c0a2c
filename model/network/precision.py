"""The number types that the inference form can compute in.

`auto` is float32, the only one that keeps the accuracy of the trained model by construction.
bfloat16 takes about 0.6 of the time on a CPU with AVX512-BF16 (benchmarks/results/model), and ten
times as long on one without AVX-512. It changes the encoder's output by about 1 % of its standard
deviation: check the scores before choosing it.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device | str) -> tuple[str, torch.dtype]:
    """The name of a precision, with `auto` resolved, and its type.

    Args:
        precision: a `Precision`.
        device: on which the network will run.

    Raises:
        ValueError: for an unknown precision.
        RuntimeError: for float16 on a CPU, which has no fast arithmetic for it.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {get_args(Precision)}, not {precision!r}")
    name = "fp32" if precision == "auto" else precision
    if name == "fp16" and torch.device(device).type == "cpu":
        raise RuntimeError("precision=fp16 needs a GPU; on a CPU choose fp32 or bf16")
    return name, _DTYPES[name]
