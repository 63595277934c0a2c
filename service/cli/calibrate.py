"""`lite-detr weights calibrate`: finds the ranges that `--precision int8` needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from model.data.output_files import check_output_file, check_suffix
from model.images.formats import IMAGE_SUFFIXES
from service.cli.failure import CommandFailed, writing_to_stdout
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
            default="128",
            help="use at most this many, evenly chosen",
        ),
    ] = 128,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_WEIGHTS_OVERWRITE")] = False,
    model: ModelOption = None,
    cache_dir: CacheDirOption = None,
) -> None:
    """Write a copy of a model with the ranges of its feature maps, for `--precision int8`.

    Use other images than those of an evaluation, and compare `lite-detr eval` with and without
    `--precision int8` afterwards. Images that cannot be read are named and left out; the exit
    status is then 1.
    """
    settings = offline_settings(model, "cpu", None, cache_dir)
    files = find_images(images)
    if any(file.name == STDIN for file in files):
        raise typer.BadParameter("IMAGE: - (stdin) is not possible here")
    from model.network.calibration import find_ranges  # noqa: PLC0415
    from model.predictor import Predictor  # noqa: PLC0415
    from model.weights.checkpoint import copy_with_metadata, load_detector  # noqa: PLC0415
    from model.weights.header import INT8_KEY  # noqa: PLC0415
    from model.weights.info import resolve_model  # noqa: PLC0415
    from model.weights.int8_ranges import encode_ranges  # noqa: PLC0415

    path = resolve_model(settings.model, settings.model_cache_dir)
    check_suffix(output, ".safetensors", IMAGE_SUFFIXES)
    inputs = [path, *(Path(file.name) for file in files)]
    check_output_file(output, overwrite=overwrite, inputs=inputs, regular=True)
    detector, info = load_detector(path)
    read = _Images(_evenly(files, max_images), Predictor(detector, info.config))
    try:
        ranges = find_ranges(detector.body, read)
    except ValueError as error:
        raise CommandFailed(f"{path}: {error}") from error
    entry = encode_ranges(ranges, read.num_images)
    written = copy_with_metadata(path, output, {INT8_KEY: entry})
    summary = f"{len(ranges)} ranges, from {read.num_images} image{'s' * (read.num_images > 1)}"
    with writing_to_stdout():
        typer.echo(f"{output}: {written.name}, version {written.version}, {summary}")
    if read.num_unreadable:
        raise typer.Exit(1)


def _evenly(files: Sequence[ImageFile], at_most: int) -> list[ImageFile]:
    """Returns that many files, evenly chosen, in their order; all if there are no more."""
    count = min(len(files), at_most)
    return [files[number * len(files) // count] for number in range(count)]


class _Images:
    """Reads the normalised images, one at a time; a file that cannot be read is reported.

    Attributes:
        num_images: that were read.
        num_unreadable: files that were not.
    """

    def __init__(self, files: Sequence[ImageFile], predictor: Predictor) -> None:
        self._files = files
        self._predictor = predictor
        self.num_images = 0
        self.num_unreadable = 0

    def __iter__(self) -> Iterator[Tensor]:
        """Yields float32 [1, 3, H, W].

        Raises:
            CommandFailed: after the last file, if no image was read.
        """
        console = Console(stderr=True)
        bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        with bar:
            for file in bar.track(self._files, description="Reading images"):
                try:
                    image = self._read(file)
                except (UnreadableFile, DetectionError) as error:
                    self.num_unreadable += 1
                    console.print(Text(f"{file.name}: {error}"), soft_wrap=True)
                    continue
                self.num_images += 1
                yield image
        if not self.num_images:
            raise CommandFailed("no image could be read")

    def _read(self, file: ImageFile) -> Tensor:
        from model.data.image_files import FILE_LIMITS  # noqa: PLC0415
        from model.geometry import padded_size  # noqa: PLC0415
        from model.images.decode import decode_image  # noqa: PLC0415

        config = self._predictor.config
        pixels = decode_image(file.read(FILE_LIMITS), config, FILE_LIMITS).pixels
        height, width = pixels.shape[:2]
        padded = padded_size(height, width, config.bucket_stride)
        return self._predictor.assemble([pixels], padded)[0]
