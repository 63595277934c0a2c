"""PyTriton: Triton in front of Python functions, one per CPU and one more to overlap batches."""

from __future__ import annotations

import os
import sysconfig
import threading
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.serving.peers.detection import CPUS, HOST, MAX_BATCH_SIZE, MAX_WAIT_MS, PORT, detect


@batch
def run(image: Any) -> dict[str, Any]:
    """Runs one batch: BYTES [n, 1] in and out."""
    bodies = detect([bytes(data) for data in image[:, 0]])
    return {"detections": np.array(bodies, dtype=np.bytes_).reshape(-1, 1)}


if __name__ == "__main__":
    # Triton's stub must load the libpython of this interpreter, not the system's.
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    config = TritonConfig(
        http_address=HOST, http_port=PORT, allow_grpc=False, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="detect",
            infer_func=[run] * (CPUS + 1),
            inputs=[Tensor(name="image", dtype=np.bytes_, shape=(1,))],
            outputs=[Tensor(name="detections", dtype=np.bytes_, shape=(1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH_SIZE,
                batcher=DynamicBatcher(max_queue_delay_microseconds=int(MAX_WAIT_MS * 1000)),
            ),
            strict=False,
        )
        triton.run()
        threading.Event().wait()
