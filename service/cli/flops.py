"""`lite-detr flops`: multiply-accumulates and parameters of a model, by part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.failure import CommandFailed
from service.cli.offline_settings import CacheDirOption
from service.cli.options import documented_option, help_text, parse_size

_MAX_SIDE = 8192  # pixels
_OF_IMAGE = ("id", "height", "width")
_MAX_IMAGES = 100  # of a data set: as many as the published figures are means of
_EPILOG = """[bold]Examples[/]

  lite-detr flops lite-dino-r50-h3l1-2p1x3 --coco-sizes
  lite-detr flops default --size 384x512 --json
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("flops", help=help_text(flops), epilog=_EPILOG)(flops)


def flops(  # noqa: PLR0913 - a command's flags
    model: Annotated[
        str,
        typer.Argument(
            help="A variant, whose weights are not needed; default; or a weights file.",
            metavar="MODEL",
        ),
    ],
    *,
    size: Annotated[
        str | None,
        documented_option(
            "--size",
            env_var="LITE_DETR_FLOPS_SIZE",
            metavar="HxW",
            help="pixels of the network's input; unset: a 4:3 image as the model resizes it",
        ),
    ] = None,
    coco_sizes: Annotated[
        bool,
        documented_option(
            "--coco-sizes",
            env_var="LITE_DETR_FLOPS_COCO_SIZES",
            help="the mean of the first 100 images of COCO val2017, as the published figures",
        ),
    ] = False,
    annotations: Annotated[
        Path | None,
        documented_option(
            "--annotations",
            env_var="LITE_DETR_FLOPS_ANNOTATIONS",
            metavar="FILE",
            help="COCO JSON: the mean of its first 100 images by id, as the model resizes them",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        documented_option(
            "--json", env_var="LITE_DETR_FLOPS_JSON", help="print the numbers as a JSON object"
        ),
    ] = False,
    cache_dir: CacheDirOption = None,
) -> None:
    """Count the multiply-accumulates and parameters of a model; nothing is computed.

    Counted are convolutions, matrix products and bilinear samples, as GFLOPs in the papers of
    DETR: a multiplication and an addition are one. GFLOPs are not time; `bench` measures that.
    Read-only values are the encoder's value projections of tokens that a layer does not update;
    published figures may not include them.
    """
    if sum((size is not None, coco_sizes, annotations is not None)) > 1:
        raise typer.BadParameter("--size, --coco-sizes and --annotations exclude each other")
    given = None if size is None else parse_size(size, _MAX_SIDE)
    import json  # noqa: PLC0415 - on first use, as torch below

    from model.config import VARIANTS  # noqa: PLC0415
    from model.geometry import resized_size  # noqa: PLC0415
    from model.network.complexity import count  # noqa: PLC0415
    from model.published import FIRST_COCO_SIZES  # noqa: PLC0415
    from model.weights.info import read_model_info, resolve_model  # noqa: PLC0415

    config = VARIANTS.get(model) or read_model_info(resolve_model(model, cache_dir)).config
    originals = [(480, 640)]
    if coco_sizes:
        originals = [size for size, times in FIRST_COCO_SIZES.items() for _ in range(times)]
    elif annotations is not None:
        originals = _read_sizes(annotations)
    sides = (config.shortest_side, config.longest_side)
    sizes = [given] if given else [resized_size(*original, *sides) for original in originals]
    height, width = (round(sum(side) / len(sizes)) for side in zip(*sizes, strict=True))
    try:
        found = count(config, sizes)
    except (RuntimeError, ValueError) as error:
        raise CommandFailed(f"{height}x{width} cannot be counted: {error}") from error
    rows = {**found.parts, "head (all but the backbone)": found.head, "total": found.total}
    if as_json:
        document = {"model": config.name, "images": len(sizes), "height": height, "width": width}
        numbers = {**found.parts, "head": found.head, "total": found.total}
        gflops = {name: round(value, 3) for name, value in numbers.items()}
        document |= {"gflops": gflops, "parameters_millions": round(found.parameters, 3)}
        document["included_gflops"] = {
            "samples": round(sum(found.samples.values()), 3),
            "read_only_values": round(found.read_only_values, 3),
        }
        typer.echo(json.dumps(document, indent=2))
        return
    mean = f" (mean of {len(sizes)} images)" if len(sizes) > 1 else ""
    typer.echo(f"{config.name}, input {height}x{width}{mean}")
    for name, value in rows.items():
        typer.echo(f"  {name:<27} {value:9.2f} GFLOPs")
    included = {
        "of it, bilinear samples": sum(found.samples.values()),
        "of it, read-only values": found.read_only_values,
    }
    for name, value in included.items():
        typer.echo(f"  {name:<27} {value:9.2f} GFLOPs")
    typer.echo(f"  {'parameters':<27} {found.parameters:9.2f} million")


def _read_sizes(path: Path) -> list[tuple[int, int]]:
    """(H, W) of the first images of a COCO document, by id.

    Raises:
        DataError: if the file cannot be read or has images without a size.
    """
    from model.data.document_checks import is_id, read_coco_json  # noqa: PLC0415 - on first use
    from model.data.errors import DataError  # noqa: PLC0415
    from model.images.limits import MAX_SIDE  # noqa: PLC0415

    document = read_coco_json(path)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(f"{path}: not COCO-format JSON: it has no list 'images', or an empty one")
    for number, image in enumerate(images):
        found = image if isinstance(image, dict) else {}
        values: list[Any] = [found.get(key) for key in _OF_IMAGE]
        if not all(map(is_id, values)) or not 1 <= min(values[1:]) <= max(values[1:]) <= MAX_SIDE:
            raise DataError(
                f"{path}: images[{number}] has no id, or no height and width from 1 to {MAX_SIDE}"
            )
    first = sorted(images, key=lambda image: image["id"])[:_MAX_IMAGES]
    return [(int(image["height"]), int(image["width"])) for image in first]
