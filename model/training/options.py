"""Options of a training run: the flags of `lite-detr train`, or arguments in code.

Each field is a flag and an environment variable (`LITE_DETR_TRAIN_` and the field's name in
capitals). A `section` is the heading of a field and of those after it in --help and in
docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from model.config import MODEL_NAME_PATTERN, VARIANTS
from model.training.loss_terms import LOSS_TERMS, LossTerm, weight_option

_Side = Annotated[int, Field(ge=32)]  # pixels
_Share = Annotated[float, Field(ge=0, le=1)]


class _Options(BaseModel):
    """Everything that a run needs, frozen; the weights of the losses are added below.

    Raises:
        ValidationError: for values out of bounds; it names the fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    output: Path = Field(
        Path("runs/train"), description="folder of checkpoints, loss curve and sample images"
    )
    overwrite: bool = Field(
        False, description="replace the files of an earlier run in output; otherwise it is refused"
    )
    name: str | None = Field(
        None,
        pattern=MODEL_NAME_PATTERN,
        description="name of the model, which KServe and Triton clients put into their requests; "
        "letters, digits, dots, hyphens and underscores; unset: the name of the variant",
    )
    variant: str = Field(
        "lite-dino-efficientnet-lite0", description=f"architecture: one of {', '.join(VARIANTS)}"
    )

    num_queries: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="detections that the network can propose on an image; unset: chosen from your "
        "data, otherwise the variant's number",
    )

    neighbour_demotion: float = Field(
        0.0,
        ge=0,
        description="logits by which encoder tokens that do not score best among their neighbours "
        "rank lower when queries are selected; 0: all rank alike",
    )

    data: Path | None = Field(
        None,
        description="your data: a folder in the layout of COCO, YOLO or Pascal VOC, or a data.yaml",
        json_schema_extra={"section": "Data"},
    )
    cache: Path | None = Field(
        None, description="folder with scenes.jsonl, which may still be growing"
    )
    annotations: Path | None = Field(None, description="COCO-format JSON; requires images")
    images: Path | None = Field(None, description="folder of the COCO images; requires annotations")
    val_annotations: Path | None = Field(
        None, description="COCO-format JSON to validate on; requires val_images"
    )
    val_images: Path | None = Field(
        None, description="folder of its images; requires val_annotations"
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="share of your images that is not trained on but validated on, if the data has "
        "no validation images; 0: no validation",
    )
    validation_images: int = Field(
        500, ge=0, description="images that are validated on, at most; 0: all"
    )
    live_scenes: int = Field(
        4000,
        ge=1,
        description="images per epoch if they are generated while training (without cache and "
        "annotations)",
    )
    generator_edition: int = Field(
        1,
        ge=1,
        description="edition of the generator of images of printed codes; 2 has more small codes "
        "and look-alikes, 3 also add-ons and rows of labels, 4 also rows of thin things",
    )
    edition_1_share: float = Field(
        0.0, ge=0, le=1, description="of the generated images, those of edition 1 of the generator"
    )
    workers: int = Field(
        1,
        ge=0,
        le=256,
        description="data-loading processes; 0: images are loaded in the training process",
    )

    init_from: Path | None = Field(
        None,
        description="safetensors file of this project: loads the tensors that fit, reports the "
        "others",
        json_schema_extra={"section": "Start"},
    )
    pretrained_backbone: str | None = Field(
        None, description="source of the backbone's weights, as its loader names it"
    )
    resume: bool = Field(False, description="continue from output/last.pt if it exists")
    seed: int = Field(
        20240611,
        ge=0,
        le=2**63 - 1,
        description="seed of weights, order and augmentation of the images",
    )

    max_iterations: int = Field(
        8000, ge=1, description="optimizer steps", json_schema_extra={"section": "Length"}
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="minutes of the whole run, resumed runs included; the learning rate follows "
        "the time",
    )
    batch_size: int = Field(8, ge=1, description="images per forward pass")
    accumulate: int = Field(1, ge=1, description="forward passes per optimizer step")

    learning_rate: float = Field(
        2e-4,
        gt=0,
        description="learning rate of AdamW after the warm-up",
        json_schema_extra={"section": "Optimizer"},
    )
    backbone_lr_factor: float = Field(
        0.25, ge=0, description="the backbone's learning rate as a multiple of learning_rate"
    )
    sampling_lr_factor: float = Field(
        0.1, ge=0, description="the same for sampling offsets and reference points"
    )
    weight_decay: float = Field(
        1e-4, ge=0, description="weight decay, except of norms, biases and embeddings"
    )
    clip_norm: float = Field(
        1.0, ge=0, description="largest gradient norm; 0: no clipping (large models: 0.1)"
    )
    schedule: Literal["cosine", "step", "flat"] = Field(
        "cosine",
        description="course of the learning rate after the warm-up; flat: constant, then a cosine "
        "in the last anneal_share of the run, so that the length may be changed until then",
    )
    warmup_iterations: int = Field(
        200, ge=0, description="optimizer steps in which the learning rate rises from 0, at most"
    )
    warmup_share: _Share = Field(
        0.05, description="share of the run in which it rises, at most; 0: no warm-up"
    )
    final_lr_factor: float = Field(
        0.01,
        ge=0,
        description="cosine, flat: the last learning rate as a multiple of learning_rate",
    )
    anneal_share: _Share = Field(
        0.2, description="flat: final share of the run in which the learning rate falls"
    )
    step_milestones: tuple[_Share, ...] = Field(
        (0.75, 0.92), description="step: progress of the run (0..1) at each division by 10"
    )
    freeze_backbone_stages: int = Field(
        1, ge=0, description="number of first backbone stages that are not trained, stem included"
    )
    drop_path: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Swin: probability that the last block leaves out attention or MLP for an "
        "image; it falls to 0 in the first block",
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the averaged weights, per optimizer step"
    )
    ema_warmup_iterations: int = Field(
        300, ge=0, description="time constant, in optimizer steps, of the decay's rise from 0"
    )

    input_side: _Side | None = Field(
        None,
        description="pixels, longest side of images when the model is used; unset: chosen from "
        "your data, otherwise the variant's rule",
        json_schema_extra={"section": "Images"},
    )
    sizes: tuple[_Side, ...] = Field(
        (320, 352, 384),
        min_length=1,
        description="pixels, longest sides of batches; each batch draws one",
    )
    later_sizes: tuple[_Side, ...] = Field(
        (), description="pixels, the same from later_minutes on; empty: sizes throughout"
    )
    later_minutes: float = Field(
        0.0, ge=0, description="minutes of training, resumed runs included, before later_sizes"
    )
    final_sizes: tuple[_Side, ...] = Field(
        (), description="pixels, the same in the final part of the run; empty: sizes throughout"
    )
    final_share: _Share = Field(
        0.1, description="final share of the run, with final_sizes, whole images and no mosaics"
    )
    symmetries: Literal["none", "hflip", "dihedral"] = Field(
        "dihedral", description="random mirroring and quarter turns (COCO: hflip)"
    )
    crop_probability: _Share = Field(
        0.5, description="probability of a random crop; otherwise the whole image is used"
    )
    mosaic_probability: _Share = Field(
        0.15, description="probability of four images combined into one"
    )
    photometric: float = Field(
        1.0, ge=0, description="strength of the random colour changes; 0: none"
    )
    invert_probability: _Share = Field(0.03, description="probability of inverted colours")
    grey_probability: _Share = Field(0.1, description="probability of a greyscale image")

    device: str = Field(
        "auto",
        description="torch device, such as cpu or cuda:1; auto: a GPU if there is one",
        json_schema_extra={"section": "Machine"},
    )
    threads: int = Field(0, ge=0, le=1024, description="torch threads on a CPU; 0: torch's default")
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        "auto",
        description="mixed precision; auto: bf16 or fp16 on a GPU, bf16 on a CPU with AMX, "
        "otherwise off",
    )
    kernel: Literal["auto", "reference"] = Field(
        "auto",
        description="deformable attention and its gradients; auto: the compiled kernels where "
        "they fit; reference: plain PyTorch, slower and with much more memory",
    )

    validate_minutes: float | None = Field(
        None,
        ge=0,
        description="minutes between two validations; unset: after each epoch, in at most a tenth "
        "of the time",
        json_schema_extra={"section": "Validation"},
    )
    patience: int = Field(
        20,
        ge=0,
        description="validations without a better AP that end the run, if a quarter of its length "
        "has passed meanwhile; 0: it is never ended early",
    )

    log_every: int = Field(
        20,
        ge=1,
        description="optimizer steps per row of the log",
        json_schema_extra={"section": "Reporting"},
    )
    checkpoint_minutes: float = Field(5.0, ge=0, description="minutes between two checkpoints")
    sample_minutes: float = Field(5.0, ge=0, description="minutes between two sheets of samples")
    sample_pictures: int = Field(6, ge=0, description="images on a sheet of samples")
    max_skipped: int = Field(
        20, ge=1, description="consecutive non-finite losses that stop the run"
    )
    score_threshold: _Share | None = Field(
        None,
        description="default score threshold of the exported model; unset: the best F1 on the "
        "validation images, 0.4 with fewer than 20 boxes",
    )
    duplicate_iou: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="IoU from which the worse of two detections is dropped, 1: both are kept; "
        "unset: the best on the validation images, 1 with fewer than 20 boxes",
    )
    tensorboard: bool = Field(
        False, description="write event files for TensorBoard into output/tensorboard"
    )
    callbacks: tuple[str, ...] = Field(
        (), description="package.module:name of callbacks that get the events of the run"
    )
    export_half: bool = Field(True, description="export the weights in float16")

    classification: Literal["quality", "focal"] = Field(
        "quality",
        description="target score of a match: quality (its IoU to the power 1.5) or focal (1)",
        json_schema_extra={"section": "Losses"},
    )
    dense_tokens: int = Field(
        9, ge=1, description="encoder tokens that learn each object in the one-to-many loss"
    )
    denoising_queries: int = Field(
        80, ge=0, description="approximate number of denoising queries per image; 0: no denoising"
    )
    label_noise: _Share = Field(
        0.5, description="half of this share of the denoising labels is drawn at random"
    )
    box_noise: float = Field(
        1.0,
        ge=0,
        description="largest shift of a positive denoising box, in halves of its size; negative "
        "ones shift further",
    )

    @field_validator("variant")
    @classmethod
    def _is_known(cls, variant: str) -> str:
        if variant not in VARIANTS:
            raise ValueError(f"{variant!r} is not one of: {', '.join(sorted(VARIANTS))}")
        return variant

    @model_validator(mode="after")
    def _names_one_source_of_images(self) -> Self:
        given = [name for name in ("data", "cache", "annotations") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} exclude each other")
        for one, other in (("annotations", "images"), ("val_annotations", "val_images")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} require each other")
        return self

    @property
    def has_own_data(self) -> bool:
        """Whether the run trains on annotated images of the user."""
        return self.data is not None or self.annotations is not None

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each term of `LOSS_TERMS`."""
        return {name: getattr(self, weight_option(name)) for name in LOSS_TERMS}

    def changed(self, **changes: Any) -> Self:
        """Returns a validated copy with other values; options that were not given stay so."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return self.model_validate({**given, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values, for the checkpoint."""
        return self.model_dump(mode="json")


def options_class(terms: Mapping[str, LossTerm]) -> type[_Options]:
    """Returns the options with a weight for each loss term."""
    weights: dict[str, Any] = {
        weight_option(name): (
            float,
            Field(term.weight, ge=0, description=f"weight of the {term.help}; 0: off"),
        )
        for name, term in terms.items()
    }
    return create_model(
        "TrainOptions", __base__=_Options, __module__=__name__, __doc__=_Options.__doc__, **weights
    )


if TYPE_CHECKING:

    class TrainOptions(_Options):
        """Everything that a run needs, the weights of the losses included."""
else:
    TrainOptions = options_class(LOSS_TERMS)
