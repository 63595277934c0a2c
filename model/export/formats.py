"""The formats of `lite-detr export`; a file is compared with its network before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import count

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.export.metadata import metadata
from model.export.network import ExportedNetwork
from model.export.onnx_file import OnnxFile, encode_onnx
from model.export.parity import Exported, Parity, check_parity
from model.export.torch_file import TorchFile, encode_torch
from model.geometry import padded_size, resized_size
from model.images.resize import resize_bilinear
from model.network.detector import LiteDETR
from model.predictor import IMAGENET_MEAN, IMAGENET_STD
from model.weights.info import ModelInfo

BATCH_SIZES = (1, 2, 3)  # of the comparison
_USUAL = (480, 640)  # (H, W) of a 4:3 image


@dataclass(frozen=True)
class NetworkFormat:
    """A format of files with a network: a graph and its weights.

    Attributes:
        encode: the bytes of a file with that metadata.
        load: reads the bytes again.
        packages: that both import.
    """

    encode: Callable[[ExportedNetwork, Mapping[str, str]], bytes]
    load: Callable[[bytes], Exported]
    packages: tuple[str, ...] = ()

    def check_packages(self) -> None:
        """Imports the packages.

        Raises:
            ModuleNotFoundError: for one that is not installed.
        """
        for package in self.packages:
            import_module(package)


NETWORK_FORMATS: dict[str, NetworkFormat] = {
    "onnx": NetworkFormat(encode_onnx, OnnxFile, ("onnx", "onnxruntime", "onnxscript")),
    "torch-export": NetworkFormat(encode_torch, TorchFile),
}


class ExportError(Exception):
    """A network cannot be exported; the message says which and why."""


def default_size(info: ModelInfo, *, padded: bool) -> tuple[int, int]:
    """(H, W) in pixels of a 4:3 image as the model resizes it; padded: that any image fits into."""
    config = info.config
    if padded:
        return padded_size(config.longest_side, config.longest_side, config.bucket_stride)
    return resized_size(*_USUAL, config.shortest_side, config.longest_side)


def export_network(  # noqa: PLR0913 - options, by keyword
    detector: LiteDETR,
    info: ModelInfo,
    output_format: NetworkFormat,
    *,
    size: tuple[int, int],
    padded: bool = False,
    images: Sequence[Image.Image] = (),
) -> tuple[bytes, Parity]:
    """Encodes a network and compares the file with it.

    Args:
        detector: as `load_detector` returns it, on the CPU.
        info: of the model.
        output_format: of the file.
        size: (H, W) of the images, in pixels.
        padded: see `ExportedNetwork`.
        images: RGB, to compare on in addition to generated ones.

    Returns:
        The file's bytes, and the differences that were found.

    Raises:
        ExportError: for a network that cannot be exported in that size.
        ParityError: if a result differs by more than the tolerance.
        ModuleNotFoundError: without the packages that the format needs.
    """
    try:
        network = ExportedNetwork(detector, size, padded=padded)
        data = output_format.encode(network, metadata(info, size, padded=padded))
        exported = output_format.load(data)
        return data, check_parity(exported, detector, comparison_batches(size, images, padded))
    except (RuntimeError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise ExportError(
            f"{info.name} cannot be exported in {size[0]}x{size[1]}: {type(error).__name__}: "
            f"{first}"
        ) from error


def comparison_batches(
    size: tuple[int, int], images: Sequence[Image.Image], padded: bool
) -> list[tuple[Tensor, ...]]:
    """Inputs of `ExportedNetwork.forward`, in batches of `BATCH_SIZES`.

    Args:
        size: (H, W) of the images, in pixels.
        images: RGB; each second image of the batches is generated.
        padded: images keep their aspect and are not larger than `size`; otherwise they are
            resized to it.
    """
    inputs = _inputs(size, images, padded)
    batches: list[tuple[Tensor, ...]] = []
    for number in BATCH_SIZES:
        arrays = [next(inputs) for _ in range(number)]
        pixels = torch.zeros(number, 3, *size)
        for index, array in enumerate(arrays):
            pixels[index, :, : array.shape[1], : array.shape[2]] = array
        sizes = torch.tensor([array.shape[1:] for array in arrays])
        batches.append((pixels, sizes) if padded else (pixels,))
    return batches


def _inputs(size: tuple[int, int], images: Sequence[Image.Image], padded: bool) -> Iterator[Tensor]:
    """Normalised images [3, H, W], for ever: given ones and generated ones in turn."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    random = np.random.default_rng(0)
    for number in count():
        if images and number % 2 == 0:
            image = images[number // 2 % len(images)]
            height, width = _fitted(image, size) if padded else size
            pixels = resize_bilinear(image, height, width)
        else:
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        yield (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std


def _fitted(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """The largest (H, W) of the image's aspect that fits into a size."""
    scale = min(size[0] / image.height, size[1] / image.width)
    return tuple(max(1, int(side * scale)) for side in (image.height, image.width))  # type: ignore[return-value]
