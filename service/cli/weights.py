"""`lite-detr weights`: lists, downloads, converts, calibrates and inspects models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model.data.input_files import one_spelling, read_text_file
from model.text import has_controls
from service.cli import calibrate
from service.cli.failure import CommandFailed
from service.cli.offline_settings import CacheDirOption
from service.cli.options import documented_option, overwrite_option

_EPILOG = """[bold]Examples[/]

  lite-detr weights list
  lite-detr weights pull lite-dino-r50-h3l1-2p1x3
  lite-detr serve --model lite-dino-r50-h3l1-2p1x3
"""
_CONVERT_EPILOG = """[bold]Example[/]

  lite-detr weights convert checkpoint.pth my.safetensors
  lite-detr serve --model my.safetensors
"""

Half = Annotated[
    bool,
    documented_option(
        "--half", env_var="LITE_DETR_WEIGHTS_HALF", help="store float16: half the size on disk"
    ),
]

weights_app = typer.Typer(
    name="weights",
    help="List, pull, convert, calibrate and inspect models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=_EPILOG,
)


def register(app: typer.Typer) -> None:
    """Adds the commands to the program."""
    weights_app.command("calibrate", epilog=calibrate.EPILOG)(calibrate.calibrate)
    app.add_typer(weights_app)


@weights_app.command("list")
def list_models(cache_dir: CacheDirOption = None) -> None:
    """List the models that `serve --model NAME` accepts and those that can be pulled."""
    from model.weights.summary import known_models  # noqa: PLC0415

    models = known_models(cache_dir)
    width = max((len(known.name) for known in models), default=0)
    for known in models:
        location = known.url if known.state == "to pull" else known.path
        typer.echo(f"{known.name:<{width}}  {known.state:<8}  {location}")


@weights_app.command("pull")
def pull_model(  # noqa: PLR0913 - flags of a command
    name: Annotated[
        str, typer.Argument(help="A published model; `weights list` shows them.", metavar="NAME")
    ],
    *,
    url: Annotated[
        str | None,
        documented_option(
            "--url",
            env_var="LITE_DETR_WEIGHTS_URL",
            metavar="URL",
            help="base URL of a mirror with the release files",
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        documented_option(
            "--sha256",
            env_var="LITE_DETR_WEIGHTS_SHA256",
            metavar="HEX",
            help="expected SHA-256 of the release file",
        ),
    ] = None,
    half: Half = False,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_WEIGHTS_OVERWRITE")] = False,
    cache_dir: CacheDirOption = None,
) -> None:
    """Download a published model and convert it for `serve --model NAME`.

    An interrupted download is resumed; no incomplete model file is left behind. A file of that
    name is replaced only with --overwrite.
    """
    from model.weights.conversion import pull  # noqa: PLC0415

    with _progress_bar(name) as progress:
        path = pull(
            name,
            cache_dir,
            base_url=url,
            sha256=sha256,
            half=half,
            overwrite=overwrite,
            progress=progress,
            report=lambda line: typer.echo(line, err=True),
        )
    typer.echo(str(path))


@weights_app.command("convert", epilog=_CONVERT_EPILOG)
def convert_checkpoint(  # noqa: PLR0913 - flags of a command
    source: Annotated[
        Path, typer.Argument(help="A checkpoint of the official code (.pth).", metavar="SOURCE")
    ],
    target: Annotated[
        Path, typer.Argument(help="The safetensors file to write.", metavar="TARGET")
    ],
    *,
    variant: Annotated[
        str | None,
        documented_option(
            "--variant",
            env_var="LITE_DETR_WEIGHTS_VARIANT",
            metavar="NAME",
            help="variant of the checkpoint; unset: detected from its weights",
        ),
    ] = None,
    enc_scale: Annotated[
        int | None,
        documented_option(
            "--enc-scale",
            env_var="LITE_DETR_WEIGHTS_ENC_SCALE",
            metavar="INTEGER",
            help="number of high-level feature scales, if the checkpoint does not contain it",
        ),
    ] = None,
    ema: Annotated[
        bool,
        documented_option(
            "--ema", env_var="LITE_DETR_WEIGHTS_EMA", help="use the averaged (EMA) weights"
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        documented_option(
            "--labels",
            env_var="LITE_DETR_WEIGHTS_LABELS",
            metavar="PATH",
            help="text file with one class name per line; unset: the 91 of COCO",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        documented_option(
            "--threshold",
            env_var="LITE_DETR_WEIGHTS_THRESHOLD",
            metavar="SCORE",
            min=0,
            max=1,
            help="default score threshold of the model; unset: 0.3",
        ),
    ] = None,
    half: Half = False,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_WEIGHTS_OVERWRITE")] = False,
) -> None:
    """Convert an official checkpoint to a weights file for `serve --model PATH`."""
    names = None if labels is None else _read_labels(labels)
    from model.weights.conversion import SCORE_THRESHOLD, convert  # noqa: PLC0415

    info = convert(
        source,
        target,
        variant,
        high_level_scales=enc_scale,
        ema=ema,
        labels=names,
        score_threshold=SCORE_THRESHOLD if threshold is None else threshold,
        half=half,
        overwrite=overwrite,
    )
    typer.echo(f"{target}: {info.name}, version {info.version}")


@weights_app.command("inspect")
def inspect_model(
    model: Annotated[
        str,
        typer.Argument(
            help="Name of a model, or path of its weights file.",
            metavar="MODEL",
            envvar="LITE_DETR_MODEL",
        ),
    ] = "default",
    cache_dir: CacheDirOption = None,
) -> None:
    """Print the contents of a weights file: network, classes, resize rule, size, SHA-256."""
    from model.weights.info import resolve_model  # noqa: PLC0415
    from model.weights.summary import describe  # noqa: PLC0415

    typer.echo(describe(resolve_model(model, cache_dir)))


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        text = read_text_file(path)
    except UnicodeDecodeError:
        raise CommandFailed(f"{path}: not UTF-8 text, one class name per line") from None
    names = tuple(one_spelling(line.strip()) for line in text.splitlines())
    if not names or not all(names):
        raise CommandFailed(f"{path}: every line must have a class name")
    if odd := [name for name in names if has_controls(name)]:
        raise CommandFailed(f"{path}: the class name {odd[0]!r} has control characters")
    return names


@contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a download on stderr; yields a function of (downloaded bytes, total bytes)."""
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(name, total=None)

    def show(downloaded: int, total: int | None) -> None:
        bar.start()  # with the first byte, so that earlier errors show no bar
        bar.update(task, completed=downloaded, total=total)

    try:
        yield show
    finally:
        bar.stop()
