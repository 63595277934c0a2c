"""What every backbone offers, and where the detector keeps the one of its config."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from model.network.backbone import BACKBONES

Maps = tuple[Tensor, Tensor, Tensor]


class Backbone(nn.Module):
    """A network that turns images into feature maps; made without arguments.

    Attributes:
        channels: of the maps of strides 8, 16 and 32.
    """

    channels: tuple[int, int, int]

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The stem, then the stages, finest first."""
        raise NotImplementedError

    def freeze_stages(self, count: int) -> None:
        """Stops the training of the first stages: 0 none, 1 the stem, 2 the next one too."""
        for module in self.stages()[:count]:
            module.requires_grad_(False)

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth in training; without an effect on networks that have none.

        Args:
            rate: the probability with which the last block leaves out a residual branch, below 1.
        """

    def load_pretrained(self, source: str) -> None:
        """Loads a classifier's weights; its classification layers are left out.

        Args:
            source: the path of a state dict in torch's format with this network's names.

        Raises:
            ValueError: where there is no such file, or it lacks a tensor; names the first.
        """
        self.load_fitting(read_state_dict(source), source)

    def load_fitting(self, tensors: dict[str, Tensor], source: str) -> None:
        """Loads the tensors that this network has; further ones are left out.

        Raises:
            ValueError: for one that is missing or of another shape; names the source.
        """
        wanted = self.state_dict()
        for name, tensor in wanted.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise ValueError(f"pretrained backbone {source!r} has no fitting {name!r}")
        self.load_state_dict({name: tensors[name] for name in wanted})


def build_backbone(name: str) -> Backbone:
    """A backbone with fresh weights.

    Args:
        name: a key of `BACKBONES`.

    Raises:
        ValueError: for another name.
    """
    if name not in BACKBONES:
        raise ValueError(f"ModelConfig.backbone={name!r} is not one of: {', '.join(BACKBONES)}")
    module, _, class_name = BACKBONES[name].partition(":")
    backbone: Backbone = getattr(import_module(module), class_name)()
    return backbone


class DetectorBackbone(nn.Module):
    """Holds a detector's backbone as `body`: the official names begin with `backbone.0.body.`.

    Args:
        name: a key of `BACKBONES`.

    Raises:
        ValueError: for another name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = build_backbone(name)
        self.dtype: torch.dtype | None = None  # of the inference form

    def inference_form(self, dtype: torch.dtype) -> DetectorBackbone:
        """See `model.network.inference`."""
        self.dtype = dtype
        return self

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        if self.dtype is not None:
            images = images.to(self.dtype, memory_format=torch.channels_last)
        return self.body(images)  # type: ignore[no-any-return]


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The tensors of a file in torch's format, which may have them under `model`.

    Raises:
        ValueError: where there is no such file, or it is of another kind or damaged.
    """
    if not Path(path).is_file():
        raise ValueError(f"pretrained backbone {path!r} is not a file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can raise any error
        raise ValueError(
            f"pretrained backbone {path!r} is damaged or no PyTorch state dict "
            f"({type(error).__name__})"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"pretrained backbone {path!r} holds no state dict of tensors")
    return loaded
