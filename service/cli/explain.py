"""`lite-detr explain`: draws where the attention of one detection looks."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.data.output_files import (
    check_output_file,
    check_suffix,
    is_stream,
    write_output_whole,
)
from service.cli.failure import CommandFailed, writing_to_stdout
from service.cli.inputs import STDIN, ImageFile, UnreadableFile
from service.cli.offline_settings import (
    CacheDirOption,
    DeviceOption,
    JpegDecodingOption,
    ModelOption,
    PrecisionOption,
    offline_settings,
)
from service.cli.options import documented_option, help_text, overwrite_option
from service.settings import Settings

if TYPE_CHECKING:
    from model.images.decode import DecodedImage, JpegDecoding
    from model.weights.info import ModelInfo
    from service.core.selection import Selection

_EPILOG = """[bold]Examples[/]

  lite-detr explain photo.jpg
  lite-detr explain photo.jpg --detection 2 --output second.png
  lite-detr explain photo.jpg --json > points.json
"""
_OTHER_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".pdf",
        ".svg",
        ".json",
    )
)


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("explain", help=help_text(explain_detection), epilog=_EPILOG)(explain_detection)


def explain_detection(  # noqa: PLR0913 - a command's flags
    image: Annotated[str, typer.Argument(help="Image file, or - for stdin.", metavar="IMAGE")],
    *,
    detection: Annotated[
        int,
        documented_option(
            "--detection",
            env_var="LITE_DETR_EXPLAIN_DETECTION",
            metavar="N",
            default="1",
            help="which detection, as `detect` lists them: 1 has the best score",
        ),
    ] = 1,
    layer: Annotated[
        int | None,
        documented_option(
            "--layer",
            env_var="LITE_DETR_EXPLAIN_LAYER",
            metavar="N",
            help="layer of the decoder, counted from 1; unset: the last one",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        documented_option(
            "--threshold",
            env_var="LITE_DETR_EXPLAIN_THRESHOLD",
            metavar="0..1",
            help="lowest score of the detections; unset: the default of the model",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        documented_option(
            "--output",
            env_var="LITE_DETR_EXPLAIN_OUTPUT",
            metavar="PATH",
            help="PNG file to write; unset: the name of the image with -explained.png, in this "
            "folder",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        documented_option(
            "--json",
            env_var="LITE_DETR_EXPLAIN_JSON",
            help="print points and weights as a JSON object; a figure only with --output",
        ),
    ] = False,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_EXPLAIN_OVERWRITE")] = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    jpeg_decoding: JpegDecodingOption = None,
    cache_dir: CacheDirOption = None,
) -> None:
    """Draw where the attention of one detection looks: sampled points and their weights.

    The figure has the cross-attention of the detection's query, and the encoder's attention of the
    token that the query began as; each with and without key-aware weights.
    """
    if detection < 1:
        raise typer.BadParameter(f"--detection: counted from 1, not {detection}")
    settings = offline_settings(model, device, precision, cache_dir, jpeg_decoding)
    target = output
    if target is None and not as_json:
        stem = "stdin" if image == STDIN else Path(image).stem
        target = Path(f"{stem}-explained.png")
    if target is not None:
        check_suffix(target, ".png", _OTHER_SUFFIXES)
        inputs = [] if image == STDIN else [Path(image)]
        check_output_file(target, overwrite=overwrite, inputs=inputs)
    document, figure = _explain(image, detection, layer, threshold, settings, target is not None)
    if target is not None and figure is not None:
        write_output_whole(target, figure)
    if as_json:
        with writing_to_stdout():
            _print_json(document)
    else:
        to_stderr = target is not None and is_stream(target)  # the figure may be on stdout
        typer.echo(f"{target}: {document['label']} {document['score']:.2f}", err=to_stderr)
        if not document["decoder"]["key_aware"]:
            typer.echo("this model has plain attention; there are no key-aware weights", err=True)


def _explain(  # noqa: PLR0913, PLR0917 - of the command
    name: str,
    number: int,
    layer: int | None,
    threshold: float | None,
    settings: Settings,
    draw: bool,
) -> tuple[dict[str, Any], bytes | None]:
    """The explanation as JSON values, and the figure as a PNG file.

    Raises:
        CommandFailed: for an image that cannot be read, or without that detection.
        typer.BadParameter: for a threshold or a layer that does not exist.
    """
    from model.geometry import padded_size  # noqa: PLC0415 - on first use
    from model.images.decode import open_upright  # noqa: PLC0415
    from model.weights.info import read_model_info, resolve_model  # noqa: PLC0415

    # What can be refused is checked before torch and the network are loaded.
    info = read_model_info(resolve_model(settings.model, settings.model_cache_dir))
    selection = _selection(threshold, info)
    if layer is not None and not 1 <= layer <= info.config.decoder_layers:
        count = info.config.decoder_layers
        raise typer.BadParameter(f"--layer: the decoder has layers 1 to {count}, not {layer}")
    data, decoded = _read(name, info, settings.jpeg_decoding)

    from model.data.image_files import FILE_LIMITS  # noqa: PLC0415
    from model.explain import ExplainedImage  # noqa: PLC0415
    from service.engine.load import load_from_settings  # noqa: PLC0415
    from service.images.explanation import draw_explanation  # noqa: PLC0415

    predictor, info = load_from_settings(settings)
    height, width = decoded.pixels.shape[:2]
    padded = padded_size(height, width, info.config.bucket_stride)
    explained = ExplainedImage(predictor, decoded.pixels, padded, decoded.original_size, layer)
    found = selection.apply(explained.detections)
    if number > len(found):
        there_are = f"there are {len(found)}" if len(found) > 0 else "there are none"
        raise CommandFailed(
            f"{name}: there is no detection {number}; {there_are} with a score of at least "
            f"{selection.threshold:g} (--threshold)"
        )
    explanation = explained.explain(found.keep(slice(number - 1, number)), info.labels)
    if not draw:
        return explanation.to_dict(), None
    figure = io.BytesIO()
    draw_explanation(open_upright(data, FILE_LIMITS)[0], explanation).save(figure, "PNG")
    return explanation.to_dict(), figure.getvalue()


def _selection(threshold: float | None, info: ModelInfo) -> Selection:
    from service.core.selection import resolve_options  # noqa: PLC0415 - on first use
    from service.errors import InvalidOptions  # noqa: PLC0415
    from service.types import DetectOptions  # noqa: PLC0415

    try:
        return resolve_options(DetectOptions(threshold=threshold), info)
    except InvalidOptions as error:
        raise typer.BadParameter(f"--threshold: {error.detail}") from None


def _read(name: str, info: ModelInfo, jpeg_decoding: JpegDecoding) -> tuple[bytes, DecodedImage]:
    """The encoded image and its resized pixels.

    Raises:
        CommandFailed: if it cannot be read.
    """
    from model.data.image_files import FILE_LIMITS  # noqa: PLC0415 - on first use
    from model.images.decode import decode_image  # noqa: PLC0415
    from service.errors import DetectionError  # noqa: PLC0415

    try:
        data = ImageFile(name).read(FILE_LIMITS)
        return data, decode_image(data, info.config, FILE_LIMITS, jpeg_decoding=jpeg_decoding)
    except (UnreadableFile, DetectionError) as error:
        raise CommandFailed(f"{name or 'IMAGE'}: {error}") from error


def _print_json(document: dict[str, Any]) -> None:
    import orjson  # noqa: PLC0415 - on first use

    option = orjson.OPT_INDENT_2 if sys.stdout.isatty() else None
    sys.stdout.flush()
    sys.stdout.buffer.write(orjson.dumps(document, option=option) + b"\n")
    sys.stdout.buffer.flush()
