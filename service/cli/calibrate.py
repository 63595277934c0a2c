"""`lite-detr weights calibrate`: finds the ranges that `--precision int8` needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

from model.data.output_files import check_output_file
from service.cli.failure import CommandFailed
from service.cli.inputs import STDIN, ImageFile, UnreadableFile, find_images
from service.cli.offline_settings import CacheDirOption, ModelOption, offline_settings
from service.cli.options import documented_option, overwrite_option
from service.errors import DetectionError

if TYPE_CHECKING:
    from torch import Tensor

    from model.predictor import Predictor

EPILOG = """[bold]Example[/]

  lite-detr weights calibrate photos/ --model my.safetensors --output my-int8.safetensors
  lite-detr serve --model my-int8.safetensors --precision int8
"""


def calibrate(  # noqa: PLR0913 - flags of a command
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images like those that the model will see: files, folders or patterns.",
            metavar="IMAGE...",
        ),
    ],
    *,
    output: Annotated[
        Path,
        documented_option(
            "--output",
            env_var="LITE_DETR_WEIGHTS_OUTPUT",
            metavar="PATH",
            help="the weights file to write, with the same weights and the ranges",
        ),
    ],
    max_images: Annotated[
        int,
        documented_option(
            "--max-images",
            env_var="LITE_DETR_WEIGHTS_MAX_IMAGES",
            metavar="INTEGER",
            min=1,
            help="use at most this many, evenly chosen",
        ),
    ] = 128,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_WEIGHTS_OVERWRITE")] = False,
    model: ModelOption = None,
    cache_dir: CacheDirOption = None,
) -> None:
    """Write a copy of a model with the ranges of its feature maps, for `--precision int8`.

    Use other images than those of an evaluation, and compare `lite-detr eval` with and without
    `--precision int8` afterwards.
    """
    settings = offline_settings(model, "cpu", None, cache_dir)
    files = find_images(images)
    if any(file.name == STDIN for file in files):
        raise typer.BadParameter("IMAGE: - (stdin) is not possible here")
    files = files[:: max(1, -(-len(files) // max_images))]
    from model.network.calibration import find_ranges  # noqa: PLC0415
    from model.predictor import Predictor  # noqa: PLC0415
    from model.weights.checkpoint import copy_with_metadata, load_detector  # noqa: PLC0415
    from model.weights.header import INT8_KEY  # noqa: PLC0415
    from model.weights.info import resolve_model  # noqa: PLC0415
    from model.weights.int8_ranges import encode_ranges  # noqa: PLC0415

    path = resolve_model(settings.model, settings.model_cache_dir)
    check_output_file(output, overwrite=overwrite, inputs=[path])
    detector, info = load_detector(path)
    images_read = _batches(files, Predictor(detector, info.config))
    try:
        ranges = find_ranges(detector.body, images_read)
    except ValueError as error:
        raise CommandFailed(f"{path}: {error}") from error
    written = copy_with_metadata(path, output, {INT8_KEY: encode_ranges(ranges, len(files))})
    typer.echo(f"{output}: {written.name}, version {written.version}, {len(ranges)} ranges")


def _batches(files: list[ImageFile], predictor: Predictor) -> Iterator[Tensor]:
    """The normalised images, one at a time.

    Raises:
        CommandFailed: for a file that is no image.
    """
    from model.data.image_files import FILE_LIMITS  # noqa: PLC0415
    from model.geometry import padded_size  # noqa: PLC0415
    from model.images.decode import decode_image  # noqa: PLC0415

    config = predictor.config
    for file in track(files, "reading images", transient=True):
        try:
            pixels = decode_image(file.read(FILE_LIMITS), config, FILE_LIMITS).pixels
        except (UnreadableFile, DetectionError) as error:
            raise CommandFailed(f"{file.name}: {error}") from error
        height, width = pixels.shape[:2]
        padded = padded_size(height, width, config.bucket_stride)
        yield predictor.assemble([pixels], padded)[0]
