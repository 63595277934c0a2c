"""One runtime on an ONNX file, in an environment that has only it and numpy.

    python -m benchmarks.model.runtime_worker RUNTIME FILE INPUTS THREADS

A side of `benchmarks.model.runtimes`, see `benchmarks.model.turns`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.model.turns import peak_mib, take_turns

Run = Callable[[Any], Any]  # from the pixels [B, 3, H, W] to (logits, boxes)


def onnxruntime_session(path: str, threads: int, shape: tuple[int, ...]) -> Run:
    """ONNX Runtime, which takes images of any shape."""
    import onnxruntime  # noqa: PLC0415 - only in its own environment

    del shape

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})


def openvino_session(path: str, threads: int, shape: tuple[int, ...]) -> Run:
    """OpenVINO, whose graph is compiled for this shape of images."""
    import openvino  # type: ignore[import-not-found]  # noqa: PLC0415 - only in its own environment

    core = openvino.Core()
    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.read_model(path)
    model.reshape(list(shape))
    compiled = core.compile_model(model, "CPU", hints)
    request = compiled.create_infer_request()

    def run(pixels: Any) -> Any:
        request.infer([pixels], share_inputs=True)
        return [request.get_output_tensor(index).data for index in range(2)]

    return run


def main() -> None:
    """See the module."""
    began = time.perf_counter()
    runtime, path, inputs, threads = sys.argv[1:5]
    sessions = {"onnxruntime": onnxruntime_session, "openvino": openvino_session}
    pixels = np.load(inputs)
    run = sessions[runtime](path, int(threads), pixels.shape)
    logits = np.asarray(run(pixels)[0]).copy()
    started = time.perf_counter() - began
    run(pixels)
    ready = {"start_seconds": started, "peak_mib": peak_mib(), "logits": logits.tolist()}
    take_turns(ready, lambda: run(pixels))


if __name__ == "__main__":
    main()
