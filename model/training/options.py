"""What one training run is told: a frozen record, filled by the command line or by code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

_SMALLEST_SIDE = 32  # pixels


@dataclass(frozen=True)
class TrainOptions:
    """Everything `train` needs; paths are resolved by the caller.

    Raises:
        ValueError: for a value that cannot work; the message names the field.
    """

    output: Path = Path("runs/train")  # folder of checkpoints, curves and sample pictures
    variant: str = "lite-dino-efficientnet-lite0"  # a key of VARIANTS
    # --- data: a generator cache, or COCO JSON + folder, or (neither) scenes drawn while training
    cache: Path | None = None  # folder with scenes.jsonl; may still be growing
    annotations: Path | None = None  # COCO-format JSON
    images: Path | None = None  # folder of the COCO images
    live_scenes: int = 4000  # scenes an epoch when they are drawn while training
    workers: int = 1  # data-loading processes; 0 = in the training process
    # --- start
    init_from: Path | None = None  # our safetensors; loads what fits and reports the rest
    pretrained_backbone: str | None = None  # a source that the backbone's loader knows
    resume: bool = False  # continue from output/last.pt where it exists
    seed: int = 20240611  # of weights, order and changes of the pictures
    # --- length
    max_iterations: int = 8000  # optimizer steps
    max_minutes: float | None = None  # of the whole run, sittings added up; anneals on time
    batch_size: int = 8  # images a forward pass
    accumulate: int = 1  # forward passes an optimizer step
    # --- optimizer
    learning_rate: float = 2e-4
    backbone_lr_factor: float = 0.25  # learning rate of the backbone over that of the rest
    sampling_lr_factor: float = 0.1  # same for sampling offsets and reference points
    weight_decay: float = 1e-4
    clip_norm: float = 1.0  # largest gradient norm; 0 = no clipping (large models: 0.1)
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_iterations: int = 200
    final_lr_factor: float = 0.01  # cosine: the last learning rate over the first
    step_milestones: tuple[float, ...] = (0.75, 0.92)  # step: progress (0..1) of each drop by 10
    freeze_backbone_stages: int = 1  # first stages without gradients, the stem being the first
    ema_decay: float = 0.999
    ema_warmup_iterations: int = 300  # time constant with which the decay grows to its value
    # --- losses
    classification: Literal["quality", "focal"] = "quality"
    denoising_queries: int = 80  # roughly; 0 = no denoising
    label_noise: float = 0.5  # half of this share of the denoising labels is redrawn
    box_noise: float = 1.0  # positives move by less than this times half the box, negatives more
    dense_weight: float = 1.0  # of the one-to-many loss on every encoder token; 0 = off
    # --- pictures
    sizes: tuple[int, ...] = (320, 352, 384)  # pixels, longest side of a batch
    final_sizes: tuple[int, ...] = ()  # pixels, in the final part; empty = `sizes` throughout
    final_share: float = 0.1  # last share of the run: `final_sizes`, no mosaic, whole pictures
    symmetries: Literal["none", "hflip", "dihedral"] = "dihedral"  # COCO: hflip
    crop_probability: float = 0.5  # else the whole picture is fitted
    mosaic_probability: float = 0.15  # four pictures in one
    photometric: float = 1.0  # strength of the colour changes, 0 = none
    invert_probability: float = 0.03
    grey_probability: float = 0.1
    # --- machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1 ...
    threads: int = 0  # torch threads on CPU; 0 = torch's choice
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"  # auto: bf16 or fp16 on GPU, off on CPU
    # --- reporting
    log_every: int = 20  # iterations a row of the log
    checkpoint_minutes: float = 5.0
    sample_minutes: float = 5.0
    sample_pictures: int = 6
    max_skipped: int = 20  # non-finite losses in a row that stop the run
    score_threshold: float = 0.4  # written into the exported model as its working threshold
    duplicate_iou: float = 1.0  # IoU from which the worse of two answers is dropped; 1 = both stay
    export_half: bool = True  # exported weights in float16

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        counts = ("max_iterations", "batch_size", "accumulate", "log_every", "max_skipped")
        checks = {name: getattr(self, name) >= 1 for name in counts}
        checks |= {
            "sizes": len(self.sizes) > 0 and min(self.sizes) >= _SMALLEST_SIDE,
            "final_sizes": all(size >= _SMALLEST_SIDE for size in self.final_sizes),
            "final_share": 0 <= self.final_share <= 1,
            "max_minutes": self.max_minutes is None or self.max_minutes > 0,
            "learning_rate": self.learning_rate > 0,
            "duplicate_iou": 0 < self.duplicate_iou <= 1,
            "ema_decay": 0 <= self.ema_decay < 1,
            "images": (self.annotations is None) == (self.images is None),
            "cache": self.cache is None or self.annotations is None,
            "workers": self.workers >= 0,
            "denoising_queries": self.denoising_queries >= 0,
        }
        for field, holds in checks.items():
            if not holds:
                raise ValueError(
                    f"TrainOptions.{field}={getattr(self, field)!r} is impossible here"
                )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, for the log and the checkpoint."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }
