"""`lite-detr export`: a model as a file for other runtimes, compared with it before it is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.failure import CommandFailed
from service.cli.offline_settings import CacheDirOption
from service.cli.options import documented_option, help_text, overwrite_option, parse_size

if TYPE_CHECKING:
    from PIL import Image

    from model.export.parity import Parity
    from model.weights.info import ModelInfo

_SAMPLES = Path(__file__).parents[1] / "rest" / "static" / "samples"
_MAX_SIDE = 4096  # pixels
_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
_EPILOG = """[bold]Examples[/]

  lite-detr export default --format onnx
  lite-detr export runs/mine/model.safetensors --format onnx --size 480x640 --output mine.onnx
  lite-detr export lite-dino-r50-h3l1-2p1x3 --format torch-export
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("export", help=help_text(export_model), epilog=_EPILOG)(export_model)


def export_model(  # noqa: PLR0913 - a command's flags
    model: Annotated[
        str,
        typer.Argument(
            help="Name of a model, or path of its weights file.",
            metavar="MODEL",
            envvar="LITE_DETR_MODEL",
            show_envvar=False,
        ),
    ] = "default",
    *,
    file_format: Annotated[
        Literal["onnx", "torch-export", "safetensors"],
        documented_option(
            "--format",
            env_var="LITE_DETR_EXPORT_FORMAT",
            default="onnx",
            help="of the file: ONNX, an archive of torch.export (.pt2), or weights for `serve`",
        ),
    ] = "onnx",
    output: Annotated[
        Path | None,
        documented_option(
            "--output",
            env_var="LITE_DETR_EXPORT_OUTPUT",
            metavar="PATH",
            help="file to write; unset: the name of the model, in this folder",
        ),
    ] = None,
    size: Annotated[
        str | None,
        documented_option(
            "--size",
            env_var="LITE_DETR_EXPORT_SIZE",
            metavar="HxW",
            help="pixels of the images; unset: a 4:3 image as the model resizes it, or with "
            "--padded a square that any image fits into",
        ),
    ] = None,
    padded: Annotated[
        bool,
        documented_option(
            "--padded",
            env_var="LITE_DETR_EXPORT_PADDED",
            help="images may be smaller than --size: the file has a second input, their sizes",
        ),
    ] = False,
    images: Annotated[
        list[Path] | None,
        documented_option(
            "--image",
            env_var="LITE_DETR_EXPORT_IMAGE",
            metavar="PATH",
            help="image file to compare the results on; can be repeated; unset: sample photos",
        ),
    ] = None,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_EXPORT_OVERWRITE")] = False,
    cache_dir: CacheDirOption = None,
) -> None:
    """Write a model as a file for other runtimes.

    The file is loaded again and run on photos and noise in batches of 1, 2 and 3. It is kept only
    if each logit and box differs by at most 0.001 from those of the model.
    """
    given = None if size is None else parse_size(size, _MAX_SIDE)
    if file_format == "safetensors" and (given or padded or images):
        raise typer.BadParameter("--size, --padded and --image: weights have no size of images")
    from model.data.output_files import check_output_file, check_suffix  # noqa: PLC0415
    from model.weights.info import read_model_info, resolve_model  # noqa: PLC0415

    weights = resolve_model(model, cache_dir)
    info = read_model_info(weights)
    suffix = _SUFFIXES[file_format]
    target = output or Path(file_stem(info.name) + suffix)
    check_suffix(target, suffix, {*_SUFFIXES.values(), ".pt", ".pth"} - {suffix})
    check_output_file(target, overwrite=overwrite, inputs=(weights, *(images or ())))
    if file_format == "safetensors":
        _export_weights(weights, target)
    else:
        _export_network(weights, info, file_format, target, given, padded, images)


def file_stem(name: str) -> str:
    """A model's name as part of a file name; the name in a weights file may be any text."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "model"


def _export_network(  # noqa: PLR0913, PLR0917 - of the command
    weights: Path,
    info: ModelInfo,
    file_format: str,
    target: Path,
    size: tuple[int, int] | None,
    padded: bool,
    images: Sequence[Path] | None,
) -> None:
    """Writes a file with a network.

    Raises:
        CommandFailed: if it cannot be exported, gives other results, or an image cannot be read.
    """
    from model.data.output_files import is_stream, write_output_whole  # noqa: PLC0415
    from model.export.formats import (  # noqa: PLC0415
        NETWORK_FORMATS,
        ExportError,
        default_size,
        export_network,
    )
    from model.export.parity import ParityError  # noqa: PLC0415
    from model.weights.checkpoint import load_detector  # noqa: PLC0415

    output_format = NETWORK_FORMATS[file_format]
    output_format.check_packages()
    compared = _read_images(images if images else sorted(_SAMPLES.glob("*.jpg")))
    detector, info = load_detector(weights)
    shape = size or default_size(info, padded=padded)
    typer.echo(f"exporting {info.name} for images of {shape[0]}x{shape[1]} ...", err=True)
    try:
        data, parity = export_network(
            detector, info, output_format, size=shape, padded=padded, images=compared
        )
    except ExportError as error:
        raise CommandFailed(str(error)) from error
    except ParityError as error:
        raise CommandFailed(f"{target} was not written: {error}") from error
    write_output_whole(target, data)
    to_stderr = is_stream(target)  # the file may be on stdout
    for line in _describe_network(info, shape, parity, padded=padded):
        typer.echo(line, err=to_stderr)
    typer.echo(f"{target}: {len(data) / 1e6:.1f} MB", err=to_stderr)


def _describe_network(
    info: ModelInfo, size: tuple[int, int], parity: Parity, *, padded: bool
) -> list[str]:
    """Inputs and outputs of a file, and how it was compared, one line each."""
    from model.export.parity import TOLERANCE  # noqa: PLC0415 - on first use

    config, (height, width) = info.config, size
    lines = [f"input   pixels  float32 [batch, 3, {height}, {width}], normalised RGB"]
    if padded:
        lines.append("input   sizes   int64   [batch, 2], height and width without padding")
    *others, last = map(str, parity.batch_sizes)
    ties = f"; ties in {parity.swapped} ranks of the query selection" if parity.swapped else ""
    return [
        *lines,
        f"output  logits  float32 [batch, queries, {config.num_classes}], before the sigmoid",
        "output  boxes   float32 [batch, queries, 4], cx, cy, w, h in 0..1",
        f"{parity.runtime}, batches of {', '.join(others)} and {last}: logits differ by at most "
        f"{parity.logits:.1g}, boxes by {parity.boxes:.1g} (limit {TOLERANCE:g}){ties}",
    ]


def _export_weights(weights: Path, target: Path) -> None:
    """Writes a weights file of this project.

    Raises:
        CommandFailed: if the file has other weights.
    """
    from model.export.weights_file import copy_weights  # noqa: PLC0415 - on first use

    info = copy_weights(weights, target)
    typer.echo(f"{target}: {info.name}, version {info.version}")


def _read_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Decodes images to compare on.

    Raises:
        CommandFailed: for a file that cannot be read.
    """
    from model.data.image_files import FILE_LIMITS  # noqa: PLC0415 - on first use
    from model.images.decode import open_upright  # noqa: PLC0415
    from service.cli.inputs import ImageFile, UnreadableFile  # noqa: PLC0415
    from service.errors import DetectionError  # noqa: PLC0415

    images = []
    for path in paths:
        try:
            images.append(open_upright(ImageFile(str(path)).read(FILE_LIMITS), FILE_LIMITS)[0])
        except (UnreadableFile, DetectionError) as error:
            raise CommandFailed(f"--image {path}: {error}") from error
    return images
