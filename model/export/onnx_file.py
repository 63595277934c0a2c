"""ONNX files: written by torch's exporter, run by onnxruntime (the extra `export`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.export.metadata import INPUTS, OUTPUTS
from model.export.network import ExportedNetwork
from model.export.torch_file import export_program

OPSET = 18  # onnxruntime and TensorRT both have it
_FOLDED_VALUES = 1 << 28  # constants of any size are computed when the file is written


def encode_onnx(network: ExportedNetwork, metadata: Mapping[str, str]) -> bytes:
    """The network as an ONNX file with standard operators, with its weights.

    Raises:
        ModuleNotFoundError: without the extra `export`.
    """
    import onnx  # noqa: PLC0415 - an extra
    from onnxscript import optimizer  # noqa: PLC0415

    names = INPUTS[: len(network.example())]
    with _quiet():
        program = torch.onnx.export(
            export_program(network),
            opset_version=OPSET,
            input_names=names,
            output_names=OUTPUTS,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        optimizer.optimize_ir(
            program.model, input_size_limit=_FOLDED_VALUES, output_size_limit=_FOLDED_VALUES
        )
        model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    encoded: bytes = model.SerializeToString()
    return encoded


class OnnxFile:
    """A network in onnxruntime, on the CPU.

    Args:
        data: the file's bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._session = _session(data)

    @property
    def runtime(self) -> str:
        """Name and version of the runtime."""
        import onnxruntime  # noqa: PLC0415 - an extra

        return f"onnxruntime {onnxruntime.__version__}"

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `model.export.parity.Exported`."""
        logits, boxes = _run(self._session, OUTPUTS, inputs)
        return logits, boxes

    def selected(self, inputs: Sequence[Tensor]) -> Tensor:
        """See `model.export.parity.Exported`: a copy of the file returns the indices, too."""
        import onnx  # noqa: PLC0415 - an extra

        model = onnx.load_model_from_string(self._data)
        (node,) = (node for node in model.graph.node if node.op_type == "TopK")
        indices = onnx.helper.make_tensor_value_info(node.output[1], onnx.TensorProto.INT64, None)
        model.graph.output.append(indices)
        (found,) = _run(_session(model.SerializeToString()), [node.output[1]], inputs)
        return found


def _session(data: bytes) -> Any:
    import onnxruntime  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _run(session: Any, outputs: Sequence[str], inputs: Sequence[Tensor]) -> list[Tensor]:
    feeds = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=False)}
    return [torch.from_numpy(np.array(found)) for found in session.run(list(outputs), feeds)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of the exporter, which are for its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
