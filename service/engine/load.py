"""Loads a model as it is served: the one function that the engine and the commands use.

weights file -> `load_detector` -> inference form on the device -> `Predictor`
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.errors import DeviceError
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.network.int8 import prepare_in_int8
from model.network.precision import (
    INT8,
    compute_exactly_on_gpus,
    precision_name,
    resolve_precision,
)
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from model.weights.info import ModelInfo, resolve_model
from model.weights.int8_ranges import read_ranges
from service.cpus import usable_cpus
from service.engine.gpu_checks import (
    check_fused_products,
    check_kernels,
    gives_finite_output,
)
from service.engine.host_memory import keep_freed_memory

if TYPE_CHECKING:  # the engine process does not load pydantic
    from service.settings import Settings

_MAX_THREADS = 1024  # as of --engine-threads


def load_predictor(
    path: Path | str, device: str = "auto", threads: int = 0, precision: str = "auto"
) -> tuple[Predictor, ModelInfo]:
    """Loads a weights file as `lite-detr serve` runs it.

    On a CPU the process keeps freed memory from here on; see `service.engine.host_memory`.

    Args:
        path: the weights file.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        threads: torch threads on the CPU; 0: those of OMP_NUM_THREADS, or if it is not set as many
            as this process may use.
        precision: see `model.network.precision`.

    Returns:
        The predictor, and the description in the file.

    Raises:
        CheckpointError: for a file that cannot be used.
        DeviceError: for a device that is not there or does not have that precision, for weights
            that exceed the range of the precision, and for int8 without `lite-detr calibrate`.
    """
    torch.set_num_threads(threads or threads_by_environment() or usable_cpus())
    chosen = pick_device(device)
    name, dtype = resolve_precision(precision, chosen)
    detector, info = load_detector(path, chosen)
    if torch.device(chosen).type == "cuda":
        return _load_on_gpu(detector, dtype, info, chosen), info
    if name == INT8:
        network = prepare_in_int8(detector, read_ranges(path))
    else:
        network = prepare_for_inference(detector, dtype)
    predictor = Predictor(network, info.config, chosen)
    if predictor.device.type == "cpu":
        keep_freed_memory()
    return predictor, info


def threads_by_environment() -> int | None:
    """Returns the whole number in OMP_NUM_THREADS, 1 to 1024; None for none or another value."""
    value = os.environ.get("OMP_NUM_THREADS", "").strip()
    count = int(value) if re.fullmatch("[0-9]{1,4}", value) else 0
    return count if 1 <= count <= _MAX_THREADS else None


def prepare_on_gpu(detector: LiteDETR, dtype: torch.dtype, device: str) -> LiteDETR:
    """The inference form on a GPU, after the checks of what the GPU computes faster.

    Args:
        detector: on the GPU.
        dtype: of the inference form.
        device: the GPU.
    """
    compute_exactly_on_gpus()
    network = prepare_for_inference(detector, dtype)
    check_fused_products(network, torch.device(device))
    check_kernels(network, torch.device(device))
    return network


def _load_on_gpu(detector: LiteDETR, dtype: torch.dtype, info: ModelInfo, device: str) -> Predictor:
    """The predictor of a network of `prepare_on_gpu`.

    Raises:
        DeviceError: if the range of the type does not suffice for these weights.
    """
    predictor = Predictor(prepare_on_gpu(detector, dtype, device), info.config, device)
    if dtype != torch.float32 and not gives_finite_output(predictor):
        name = precision_name(dtype)
        raise DeviceError(f"the model exceeds the range of precision={name}; choose fp32")
    return predictor


def load_from_settings(settings: Settings) -> tuple[Predictor, ModelInfo]:
    """Loads the model that the settings name; see `load_predictor`."""
    path = resolve_model(settings.model, settings.model_cache_dir)
    return load_predictor(path, settings.device, settings.engine_threads, settings.precision)


def pick_device(device: str) -> str:
    """The torch device for a setting.

    Raises:
        DeviceError: for a GPU where there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device={device}: torch finds no CUDA GPU here")
    return device
