"""The number types that the inference form can compute in.

`auto` is float32, on a CPU and on a GPU. float16 and TF32 should be several times as fast on GPUs
(by the model of `benchmarks/gpu/roofline.py`; not measured yet), but their rounding swaps tokens
with nearly the same score in the query selection: on 84 images a fifth of the queries change, and
with them a fifth of the detections by more than 0.01 in score or a pixel
(`benchmarks/model/precision.py`, emulated on a CPU). With the queries of float32, float16 changes
scores by at most 0.003 and boxes by at most half a pixel of 1280. It shifts single images, not the
accuracy on many. bfloat16 has the range of float32 and an eighth of the precision of float16; on a
CPU with AVX512-BF16 it takes about 0.6 of the time of float32 (benchmarks/results/model), on one
without AVX-512 ten times as long. It changes the encoder's output by about 1 % of its standard
deviation: check the scores before choosing it. int8 is for the convolutions of the backbone on a
CPU (`model.network.int8`); all else is float32 then.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from model.errors import DeviceError

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
INT8 = "int8"  # of the backbone
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def resolve_precision(precision: str, device: torch.device | str) -> tuple[str, torch.dtype]:
    """The name of a precision, with `auto` resolved, and its type (int8: of the other layers).

    Args:
        precision: a `Precision`.
        device: on which the network will run.

    Raises:
        ValueError: for an unknown precision.
        DeviceError: for float16 on a CPU, which has no fast arithmetic for it, and int8 on a GPU.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {get_args(Precision)}, not {precision!r}")
    kind, name = torch.device(device).type, precision
    if precision == "auto":
        name = "fp32"
    if name == "fp16" and kind == "cpu":
        raise DeviceError("precision=fp16 needs a GPU; on a CPU choose fp32 or bf16")
    if name == INT8 and kind != "cpu":
        raise DeviceError("precision=int8 is for CPUs; on a GPU choose fp32, fp16 or bf16")
    return name, torch.float32 if name == INT8 else _DTYPES[name]


def precision_name(dtype: torch.dtype) -> str:
    """The name of a type: "fp32", "bf16" or "fp16"."""
    return _NAMES[dtype]


def compute_exactly_on_gpus() -> None:
    """Makes torch compute on GPUs, in this process, with the numbers that a precision names.

    float32 is float32: no rounding to TF32 (10 bits of precision), which torch's defaults allow in
    convolutions. Sums of 16-bit products are float32: by default parts of them may be 16-bit.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
