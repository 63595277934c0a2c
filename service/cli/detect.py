"""`lite-detr detect`: its flags; the work is in `offline_run`, loaded when the command runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from service.cli.inputs import STDIN
from service.cli.offline_settings import (
    CacheDirOption,
    DeviceOption,
    JpegDecodingOption,
    ModelOption,
    PrecisionOption,
    offline_settings,
)
from service.cli.options import documented_option, help_text, overwrite_option

_LABELS_VARIABLE = "LITE_DETR_DETECT_LABELS"
_EPILOG = """[bold]Examples[/]

  lite-detr detect photo.jpg
  lite-detr detect holiday/ 'scans/*.png' --json > found.json
  lite-detr detect photo.jpg --save drawn/ --threshold 0.6
  lite-detr detect wall.jpg --tile auto
  lite-detr detect photos/ --coco --labels qr_code --labels aztec
  lite-detr detect val/ --coco --annotations val.json --threshold 0 > found.json
  curl -s https://example.org/photo.jpg | lite-detr detect - --json
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("detect", help=help_text(detect_images), epilog=_EPILOG)(detect_images)


def detect_images(  # noqa: PLR0913 - a command's flags
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, patterns, or - for stdin.",
            metavar="IMAGE",
            show_default=False,
        ),
    ],
    *,
    output_format: Annotated[
        str | None,
        documented_option(
            "--format",
            env_var="LITE_DETR_DETECT_FORMAT",
            metavar="NAME",
            help="print the results in this format of POST /detect, such as coco; unset: a table",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        documented_option(
            "--json",
            env_var="LITE_DETR_DETECT_JSON",
            help="print a JSON array with one element per image, as POST /detect returns it",
        ),
    ] = False,
    as_coco: Annotated[
        bool,
        documented_option(
            "--coco", env_var="LITE_DETR_DETECT_COCO", help="print one COCO data set (JSON)"
        ),
    ] = False,
    annotations: Annotated[
        Path | None,
        documented_option(
            "--annotations",
            env_var="LITE_DETR_DETECT_ANNOTATIONS",
            metavar="PATH",
            help="with --coco: COCO-format JSON whose image ids (by file name) and category ids "
            "(by name) the output gets, so that loadRes can score it",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        documented_option(
            "--save",
            env_var="LITE_DETR_DETECT_SAVE",
            metavar="FOLDER",
            help="write each image with its boxes drawn into this folder, which is not read as "
            "input if it is below an input folder",
        ),
    ] = None,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_DETECT_OVERWRITE")] = False,
    threshold: Annotated[
        float | None,
        documented_option(
            "--threshold",
            env_var="LITE_DETR_DETECT_THRESHOLD",
            metavar="0..1",
            help="lowest score that is shown; unset: the default of the model",
        ),
    ] = None,
    max_detections: Annotated[
        int | None,
        documented_option(
            "--max-detections",
            env_var="LITE_DETR_DETECT_MAX_DETECTIONS",
            metavar="INTEGER",
            help="keep at most this many per image, the best ones",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        documented_option(
            "--labels",
            env_var=_LABELS_VARIABLE,
            metavar="NAME,...",
            help="keep only these classes; a name with a comma in it: give the flag once per name",
            click_reads_env=False,  # it would split the value at spaces
        ),
    ] = None,
    tile: Annotated[
        str | None,
        documented_option(
            "--tile",
            env_var="LITE_DETR_DETECT_TILE",
            metavar="auto|WxH",
            help="cut large images into overlapping tiles, for small objects: auto, or a size in "
            "pixels such as 640x480",
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        documented_option(
            "--overlap",
            env_var="LITE_DETR_DETECT_OVERLAP",
            metavar="0..0.5",
            help="with --tile: least overlap of neighbouring tiles, as a share of a tile; unset: "
            "0.2",
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    jpeg_decoding: JpegDecodingOption = None,
    cache_dir: CacheDirOption = None,
) -> None:
    """Detect objects in image files without a service; the results are the same.

    Image files are detected in as the service detects in them, with larger limits of their size.
    Of a folder, the images in it and below are detected in, also behind links to other folders.
    For a file or folder that cannot be read an error is printed in its place. An image that --save
    cannot write is named on stderr, and its result is kept. The exit status is then 1. The other
    files are not affected.
    """
    chosen = [
        name
        for flag, name in ((output_format, output_format), (as_json, "json"), (as_coco, "coco"))
        if flag
    ]
    if len(chosen) > 1:
        raise typer.BadParameter("--format, --json and --coco: choose one")
    if images.count(STDIN) > 1:
        raise typer.BadParameter(f"IMAGE: {STDIN} (stdin) can be given only once")
    if annotations is not None and chosen != ["coco"]:
        raise typer.BadParameter("--annotations gives the ids of COCO output: add --coco")
    if not labels and (from_variable := os.environ.get(_LABELS_VARIABLE)):
        labels = [from_variable]
    settings = offline_settings(model, device, precision, cache_dir, jpeg_decoding)
    from service.cli.offline_run import OfflineRun, run_offline  # noqa: PLC0415

    run = OfflineRun(
        images=tuple(images),
        output_format=chosen[0] if chosen else None,
        annotations=annotations,
        save=save,
        overwrite=overwrite,
        threshold=threshold,
        max_detections=max_detections,
        labels=tuple(labels) if labels else None,
        tile=tile,
        overlap=overlap,
    )
    if not run_offline(run, settings):
        raise typer.Exit(1)
