"""The losses of one batch: its forward pass in the run's precision, then the loss terms."""

from __future__ import annotations

import torch

from model.errors import DeviceError
from model.network.detector import LiteDETR
from model.network.outputs import TrainingOutput
from model.training.batches import Batch, normalise
from model.training.denoising import DenoisingBatch, make_denoising
from model.training.losses import Losses, detection_losses
from model.training.matcher import NonFiniteError
from model.training.options import TrainOptions
from model.training.processes import Processes

_FINEST_STRIDE = 8  # pixels; doubles with each level


class Objective:
    """Computes the losses that a run minimises.

    Args:
        detector: the network being trained.
        options: of the run.
        precision: the reduced type of the forward pass; None for float32.
        processes: that train together; None: this one only.
    """

    def __init__(
        self,
        detector: LiteDETR,
        options: TrainOptions,
        precision: torch.dtype | None,
        processes: Processes | None = None,
    ) -> None:
        """Computes nothing yet."""
        self._processes = processes or Processes()
        self._detector = detector
        self._options = options
        self._precision = precision
        self._weights = options.loss_weights

    def losses(self, batch: Batch) -> Losses:
        """Computes the losses of a batch on the network's device; noise is from torch's generator.

        Raises:
            NonFiniteError: if predictions are not finite.
        """
        options, device = self._options, batch.images.device
        denoising = self._denoising(batch)
        images = normalise(batch.images, batch.padding_mask)
        precision = self._precision
        with torch.autocast(device.type, precision, enabled=precision is not None):
            queries = denoising.queries if denoising else None
            output = self._detector.forward_training(images, batch.padding_mask, queries)
        self._check_together(output)
        return detection_losses(
            output,
            batch.targets,
            denoising,
            weights=self._weights,
            classification=options.classification,
            any_object=not self._detector.config.select_by_best_class,
            mean=self._processes.mean,
            dense_tokens=options.dense_tokens,
        )

    def _check_together(self, output: TrainingOutput) -> None:
        """Raises in all processes if the predictions of one are not finite.

        Otherwise the others would wait for it when they average the divisors of the losses.
        """
        if self._processes.count == 1:
            return  # the matcher checks them
        tensors = (output.pred_logits, output.pred_boxes, output.proposal_logits)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        if self._processes.any(not finite):
            raise NonFiniteError("predictions of a process contain NaN or infinite values")

    def _denoising(self, batch: Batch) -> DenoisingBatch | None:
        """Denoising queries, for detectors that have them (DINO)."""
        options = self._options
        if not self._detector.config.refined_positions:
            return None
        return make_denoising(
            batch.targets,
            self._detector.label_enc,
            num_classes=self._detector.config.num_classes,
            num_queries=self._num_queries(batch),
            wanted=options.denoising_queries,
            label_noise=options.label_noise,
            box_noise=options.box_noise,
        )

    def _num_queries(self, batch: Batch) -> int:
        """Queries that the network selects; small images have fewer tokens than num_queries."""
        config, (height, width) = self._detector.config, batch.padding_mask.shape[1:]
        strides = (_FINEST_STRIDE * 2**level for level in range(config.num_feature_levels))
        tokens = sum(-(-height // stride) * -(-width // stride) for stride in strides)
        return min(config.num_queries, int(tokens))


def choose_device(name: str) -> torch.device:
    """Returns the device of an option; "auto" is a GPU if there is one.

    Raises:
        DeviceError: for a name that torch does not know, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is unknown: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DeviceError(
                f"device {name!r}: torch finds no CUDA GPU here; --device cpu trains small variants"
            )
        if (device.index or 0) >= count:
            raise DeviceError(f"device {name!r}: there are only {count} GPUs, cuda:0 is the first")
    elif device.type not in ("cpu", "mps"):
        raise DeviceError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    return device


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """Returns the reduced type for an option, None for float32.

    Args:
        amp: the option; "auto" chooses what is fast on the device.
        device: of the network.
    """
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if amp == "auto" and device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
