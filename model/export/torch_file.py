"""Files of torch.export (.pt2), and the graph that other exporters begin with."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from model.export.network import ExportedNetwork
from model.ops import computed_by

METADATA_FILE = "metadata.json"  # among the extra files of an archive


def export_program(network: ExportedNetwork) -> ExportedProgram:
    """The network as a graph of torch's operators, for any batch size."""
    batch = Dim("batch", min=1)
    example = network.example()
    with torch.no_grad(), computed_by("gathers"):
        network(*example)  # constants are computed outside the graph
    # With gradients enabled the network writes no tensor in place.
    with torch.enable_grad(), computed_by("gathers"):
        return torch.export.export(
            network, example, dynamic_shapes=tuple({0: batch} for _ in example)
        )


def encode_torch(network: ExportedNetwork, metadata: Mapping[str, str]) -> bytes:
    """The network as a file that `torch.export.load` reads."""
    file = io.BytesIO()
    text = json.dumps(dict(metadata), ensure_ascii=False, indent=2)
    program = export_program(network)
    with warnings.catch_warnings():
        # Parameters that share a storage are saved with the whole of it.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, file, extra_files={METADATA_FILE: text})
    return file.getvalue()


class TorchFile:
    """A network that `torch.export.load` has read.

    Args:
        data: the file's bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._module = torch.export.load(io.BytesIO(data)).module()

    @property
    def runtime(self) -> str:
        """Name and version of the runtime."""
        return f"torch {torch.__version__}"

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `model.export.parity.Exported`."""
        with torch.no_grad():
            logits, boxes = self._module(*inputs)
        return logits, boxes

    def selected(self, inputs: Sequence[Tensor]) -> Tensor:
        """See `model.export.parity.Exported`."""
        recorder = _TopK(self._module)
        with torch.no_grad():
            recorder.run(*inputs)
        assert recorder.indices is not None
        return recorder.indices


class _TopK(fx.Interpreter):
    """Runs a graph and records the indices of its top-k."""

    indices: Tensor | None = None

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Runs one operator."""
        result = super().call_function(target, args, kwargs)
        if target is torch.ops.aten.topk.default:
            self.indices = result[1]
        return result
