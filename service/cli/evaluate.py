"""`lite-detr eval`: COCO scores of a model on annotated images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.data.output_files import check_output_file
from service.cli.offline_settings import (
    CacheDirOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    offline_settings,
)
from service.cli.options import documented_option, help_text, overwrite_option

_EPILOG = """[bold]Examples[/]

  lite-detr eval --annotations val.json --images val/
  lite-detr eval --model runs/codes/model.safetensors --annotations val.json --images val/ --json
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("eval", help=help_text(evaluate_model), epilog=_EPILOG)(evaluate_model)


def evaluate_model(  # noqa: PLR0913 - a command's flags
    *,
    annotations: Annotated[
        Path,
        documented_option(
            "--annotations",
            env_var="LITE_DETR_EVAL_ANNOTATIONS",
            metavar="PATH",
            help="COCO-format JSON; its category names are looked up among the model's classes",
        ),
    ],
    images: Annotated[
        Path,
        documented_option(
            "--images",
            env_var="LITE_DETR_EVAL_IMAGES",
            metavar="FOLDER",
            help="the folder that the file names in it are relative to",
        ),
    ],
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheDirOption = None,
    batch_size: Annotated[
        int,
        documented_option(
            "--batch-size",
            env_var="LITE_DETR_EVAL_BATCH_SIZE",
            metavar="INTEGER",
            default="1",
            help="images of one shape bucket in a batch",
        ),
    ] = 1,
    limit: Annotated[
        int | None,
        documented_option(
            "--limit",
            env_var="LITE_DETR_EVAL_LIMIT",
            metavar="INTEGER",
            help="use only the first images",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        documented_option(
            "--results",
            env_var="LITE_DETR_EVAL_RESULTS",
            metavar="PATH",
            help="also write the detections as a COCO results file",
        ),
    ] = None,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_EVAL_OVERWRITE")] = False,
    as_json: Annotated[
        bool,
        documented_option(
            "--json", env_var="LITE_DETR_EVAL_JSON", help="print the scores as a JSON object"
        ),
    ] = False,
) -> None:
    """Score a model on annotated images: COCO AP, AP50, AP75, by size, AR, and by class.

    Images are decoded, resized and detected in as in serving; so are the times measured. The
    annotations and the headers of the images are checked at the start.
    """
    for flag, value in (("--batch-size", batch_size), ("--limit", limit)):
        if value is not None and value < 1:
            raise typer.BadParameter(f"{flag}: must be at least 1, not {value}")
    settings = offline_settings(model, device, precision, cache_dir)
    if results is not None:
        from model.weights.info import resolve_model  # noqa: PLC0415

        weights = resolve_model(settings.model, settings.model_cache_dir)
        check_output_file(results, overwrite=overwrite, inputs=(annotations, weights))
    from model.evaluation.evaluate import evaluate, format_scores  # noqa: PLC0415
    from service.engine.load import load_from_settings  # noqa: PLC0415

    predictor, info = load_from_settings(settings)
    with _progress_bar() as progress:
        scores = evaluate(
            predictor,
            info.labels,
            annotations,
            images,
            batch_size=batch_size,
            limit=limit,
            results_path=results,
            overwrite=overwrite,
            report=lambda text: typer.echo(text, err=True),
            progress=progress,
        )
    typer.echo(scores.to_json() if as_json else format_scores(scores))


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Yields a function that draws a progress bar on stderr from (images done, images in total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("Evaluating", total=None)

    def show(done: int, total: int) -> None:
        bar.start()  # only now: an error before the first batch needs no bar
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()
