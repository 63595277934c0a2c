"""A backbone whose convolutions run in int8 on a CPU, between maps in uint8.

Maps (`model.network.int8_maps`) and weights have a scale for each channel, and sums are int32. The
products are oneDNN's, which torch offers under private names only; those know one scale for a map,
so the scales of its channels are part of the weights of the convolutions that write and read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import DeviceError
from model.network import onednn
from model.network.backbone.base import Backbone, Maps
from model.network.calibration import Step, trace, unpacked_form
from model.network.convolution import FoldedConvolution
from model.network.inference import prepare_for_inference
from model.network.int8_maps import LEVELS, Quantization, share_scales
from model.network.onednn import Activation

if TYPE_CHECKING:
    from model.network.detector import LiteDETR

_MAX_WEIGHT = 127
# Without VNNI, oneDNN adds pairs of products in 16 bits, which weights of 8 bits can overflow.
_MAX_WEIGHT_WITHOUT_VNNI = 63
_OPERATORS = ("qconv_prepack", "qconv2d_pointwise")
_TINY = 1e-30
_IDENTITY = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation and groups


@cache
def is_available() -> bool:
    """Whether this processor and this build of torch have the convolutions."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(torch.ops.onednn, name) for name in _OPERATORS):
        return False
    one = Quantization(torch.tensor([0.0, LEVELS, 0.0])[:, None].expand(3, 8))
    x = torch.arange(64, dtype=torch.uint8).view(1, 8, 4, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        weight = torch.eye(8)[:, :, None, None]
        return torch.equal(Int8Convolution(weight, torch.zeros(8), _IDENTITY, one, one)(x), x)
    except RuntimeError:
        return False


class Int8Convolution(nn.Module):
    """Takes the place of a `FoldedConvolution` between maps in uint8.

    ReLU and ReLU6 need no work: the ranges of their results begin at 0 and end at most at 6.

    Args:
        weight: [C', C / groups, h, w], float32.
        bias: [C'], float32.
        geometry: padding, stride, dilation and groups.
        source: of the input.
        result: of the result.
        add: of a map that is added to the result, with the same scales; None: none is.
    """

    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor

    def __init__(  # noqa: PLR0913, PLR0917 - a convolution has as many parts
        self,
        weight: Tensor,
        bias: Tensor,
        geometry: tuple[Any, ...],
        source: Quantization,
        result: Quantization,
        add: Quantization | None = None,
    ) -> None:
        super().__init__()
        padding, stride, dilation, groups = geometry
        self.geometry = (stride, padding, dilation, groups)
        self.zero_points = (source.zero_point, result.zero_point)
        self.added_zero_point = None if add is None else add.zero_point
        factors = source.scale.view(groups, 1, -1, 1, 1) / result.scale.view(groups, -1, 1, 1, 1)
        weight = (weight.view(groups, -1, *weight.shape[1:]) * factors).view_as(weight)
        largest = _MAX_WEIGHT if torch.cpu._is_vnni_supported() else _MAX_WEIGHT_WITHOUT_VNNI
        scale = weight.abs().amax((1, 2, 3)).clamp_min(_TINY) / largest
        rounded = torch.round(weight / scale[:, None, None, None])
        # What rounding the weights adds to the mean of a channel is part of the bias.
        lost = (weight - rounded * scale[:, None, None, None]).sum((2, 3))

        def product(weights: Tensor, of_source: Tensor) -> Tensor:
            one = (of_source / source.scale).view(groups, 1, -1)
            products: Tensor = (weights.view(groups, -1, weights.shape[1]) * one).sum(2)
            return products.flatten()

        moved = -result.offset if add is None else add.offset - result.offset
        bias = (bias + moved) / result.scale + product(weight.sum((2, 3)), source.offset)
        bias = bias + product(lost, source.mean - source.offset)
        # No buffer: its memory format is oneDNN's own.
        self._packed: Tensor = torch.ops.onednn.qconv_prepack(
            rounded.to(torch.int8).contiguous(), scale, 1.0, source.zero_point, *self.geometry
        )
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", torch.zeros(len(scale), dtype=torch.int32))
        self.register_buffer("bias", bias)

    def forward(
        self, x: Tensor, add: Tensor | None = None, *, activation: Activation = "none"
    ) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], uint8, channels last; the result may overwrite `add`."""
        source, result = self.zero_points
        weight = (self._packed, self.weight_scale, self.weight_zero_point)
        how = (self.bias, *self.geometry, 1.0, result, torch.uint8)
        if self.added_zero_point is None:
            product = torch.ops.onednn.qconv2d_pointwise(
                x, 1.0, source, *weight, *how, "none", [], ""
            )
        else:
            binary: tuple[Any, ...] = (1.0, self.added_zero_point, "sum", 1.0, "none", [], "")
            product = torch.ops.onednn.qconv2d_pointwise.binary(
                x, 1.0, source, *weight, add, *how, *binary
            )
        return cast(Tensor, product)


class QuantizingConvolution(nn.Module):
    """The last convolution in float32, which writes uint8.

    Args:
        plain: in float32, with ReLU or another activation that the range of the result is.
        result: of the result.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, plain: FoldedConvolution, result: Quantization) -> None:
        super().__init__()
        self.geometry = plain.geometry
        weight = plain.weight / result.scale[:, None, None, None]
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        # Numbers are cut off: with half a step more, that rounds them.
        bias = (plain.bias - result.offset) / result.scale
        self.register_buffer("bias", bias + (result.zero_point + 0.5))

    def forward(
        self, x: Tensor, add: Tensor | None = None, *, activation: Activation = "none"
    ) -> Tensor:
        """Float32 [B, C, H, W] -> uint8 [B, C', H', W'], channels last."""
        clamp = ("hardtanh", [0.0, float(LEVELS)], "")
        steps = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.geometry, *clamp
        )
        return cast(Tensor, steps.to(torch.uint8))


class Int8MaxPool(nn.Module):
    """A maximum over windows of a map in uint8 whose zero point is 0.

    torch's own counts the map's numbers in uint8, too, and refuses more than 255 of them.

    Args:
        plain: of equal sides.
    """

    def __init__(self, plain: nn.MaxPool2d) -> None:
        super().__init__()
        sides = (plain.kernel_size, plain.stride, plain.padding)
        self.size, self.stride, self.padding = (cast(int, side) for side in sides)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W'], uint8."""
        x = F.pad(x, [self.padding] * 4)
        for axis in (2, 3):
            windows = (x.shape[axis] - self.size) // self.stride + 1
            length = (windows - 1) * self.stride + 1
            parts = [
                x.narrow(axis, first, length)[_every(self.stride, axis)]
                for first in range(self.size)
            ]
            x = parts[0]
            for part in parts[1:]:
                x = torch.maximum(x, part)
        return x


def _every(stride: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(None, None, stride if each == axis else 1) for each in range(4))


class Int8Backbone(Backbone):
    """The inference form of a backbone of convolutions in int8; its maps are float32.

    Args:
        body: the network, in float32; not changed.
        ranges: of its maps by the names of `trace`, from `find_ranges`.

    Raises:
        DeviceError: if this processor has no such convolutions, the network is not made of
            convolutions, or a range is missing.
    """

    def __init__(self, body: Backbone, ranges: Mapping[str, Tensor]) -> None:
        super().__init__()
        if not is_available():
            raise DeviceError("precision=int8: this processor or build of torch has no int8")
        self.channels = body.channels
        self.body = unpacked_form(body)
        steps, taps = trace(self.body)
        for step in steps:
            channels = _channels(self.body, step)
            if step.result not in ranges or channels not in {None, ranges[step.result].shape[1]}:
                raise DeviceError(
                    f"precision=int8: no range of the map {step.result}: calibrate this model "
                    "with `lite-detr weights calibrate`"
                )
        padded = {step.source for step in steps if _pads(self.body.get_submodule(step.name))}
        maps = {name: Quantization(r, padded=name in padded) for name, r in ranges.items()}
        share_scales(maps, [(step.result, step.add) for step in steps if step.add is not None])
        self._taps = [maps[name] for name in taps]
        last = _last_in_float32(self.body, steps)
        for step in steps[:last]:  # which are alone and have no products packed
            module = cast(FoldedConvolution, self.body.get_submodule(step.name))
            module.fused = onednn.is_available(module.weight.device, torch.float32)
        for number, step in enumerate(steps[last:], start=last):
            replacement = _replacement(self.body, step, maps, quantizes=number == last)
            self.body.set_submodule(step.name, replacement)

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        maps = self.body(images)
        found = (how.dequantize(q) for how, q in zip(self._taps, maps, strict=True))
        return cast(Maps, tuple(found))


def _channels(body: nn.Module, step: Step) -> int | None:
    """How many channels a layer writes; None: as many as it reads."""
    module = body.get_submodule(step.name)
    return len(module.weight) if isinstance(module, FoldedConvolution) else None


def _pads(module: nn.Module) -> bool:
    return not isinstance(module, FoldedConvolution) or any(module.geometry[0])


def prepare_in_int8(detector: LiteDETR, ranges: Mapping[str, Tensor]) -> LiteDETR:
    """The inference form with the backbone in int8 and all else in float32.

    Args:
        detector: in float32 on a CPU; not changed.
        ranges: see `Int8Backbone`.

    Raises:
        DeviceError: see `Int8Backbone`.
    """
    backbone = Int8Backbone(detector.body, ranges)
    network = prepare_for_inference(detector)
    network.backbone[0].body = backbone
    return network


def _last_in_float32(body: nn.Module, steps: Sequence[Step]) -> int:
    """The number of the last step in float32: the first convolution, and depthwise ones after it.

    Their few weights add and subtract neighbouring pixels, which are nearly equal: rounding the
    weights changes such differences more than those of all other convolutions together.
    """
    last = 0
    for step in steps[1:]:
        written = steps[last].result
        if not _is_depthwise(body, step) or _readers(steps, written) > 1 or step.source != written:
            break
        last += 1
    return last


def _is_depthwise(body: nn.Module, step: Step) -> bool:
    module = body.get_submodule(step.name)
    return isinstance(module, FoldedConvolution) and module.geometry[3] == len(module.weight)


def _readers(steps: Sequence[Step], name: str) -> int:
    """How many steps read or add a map."""
    return sum((step.source == name) + (step.add == name) for step in steps)


def _replacement(
    body: nn.Module, step: Step, maps: Mapping[str, Quantization], *, quantizes: bool
) -> nn.Module:
    module = body.get_submodule(step.name)
    if isinstance(module, nn.MaxPool2d):
        return Int8MaxPool(module)
    assert isinstance(module, FoldedConvolution)
    if quantizes:
        return QuantizingConvolution(module, maps[step.result])
    how = (maps[step.source], maps[step.result])
    add = None if step.add is None else maps[step.add]
    return Int8Convolution(module.weight, module.bias, module.geometry, *how, add)
