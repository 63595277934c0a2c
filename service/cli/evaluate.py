"""`lite-detr eval`: COCO scores of a model on annotated images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from model.data.errors import DataError
from model.data.output_files import check_output_file
from model.evaluation.coco_folder import DEFAULT_SPLIT, CocoFiles, find_coco_files
from service.cli.evaluation_progress import evaluation_progress
from service.cli.failure import writing_to_stdout
from service.cli.offline_settings import (
    CacheDirOption,
    DeviceOption,
    JpegDecodingOption,
    ModelOption,
    PrecisionOption,
    offline_settings,
)
from service.cli.options import documented_option, help_text, overwrite_option

if TYPE_CHECKING:
    from model.data.data_sets import DataSet
    from model.evaluation.scores import Scores
    from model.predictor import Predictor
    from model.weights.info import ModelInfo

_GPU_BATCH_SIZE = 8
_SPLIT = "val"  # of --data
_EPILOG = """[bold]Examples[/]

  lite-detr eval --model runs/mine/model.safetensors --data my-data/
  lite-detr eval --annotations val.json --images val/
  lite-detr eval --model runs/codes/model.safetensors --annotations val.json --images val/ --json
  lite-detr eval --coco /data/coco --model lite-dino-r50-h3l1-2p1x3 --results found.json
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("eval", help=help_text(evaluate_model), epilog=_EPILOG)(evaluate_model)


def evaluate_model(  # noqa: PLR0913 - a command's flags
    *,
    data: Annotated[
        Path | None,
        documented_option(
            "--data",
            env_var="LITE_DETR_EVAL_DATA",
            metavar="PATH",
            help="your data, as in training: a folder in the layout of COCO, YOLO or Pascal VOC, "
            "a data.yaml, or a COCO JSON file; its class names are looked up among the model's",
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        documented_option(
            "--annotations",
            env_var="LITE_DETR_EVAL_ANNOTATIONS",
            metavar="PATH",
            help="in place of --data: COCO-format JSON; requires --images",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        documented_option(
            "--images",
            env_var="LITE_DETR_EVAL_IMAGES",
            metavar="FOLDER",
            help="the folder that the file names in it are relative to",
        ),
    ] = None,
    coco: Annotated[
        Path | None,
        documented_option(
            "--coco",
            env_var="LITE_DETR_EVAL_COCO",
            metavar="FOLDER",
            help="in place of them: a folder with COCO's annotations/instances_val2017.json and "
            "val2017/",
        ),
    ] = None,
    split: Annotated[
        str | None,
        documented_option(
            "--split",
            env_var="LITE_DETR_EVAL_SPLIT",
            metavar="NAME",
            default=f"{_SPLIT}; {DEFAULT_SPLIT} of --coco",
            help="the part of --data or --coco to use, such as test or train2017",
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    jpeg_decoding: JpegDecodingOption = None,
    cache_dir: CacheDirOption = None,
    batch_size: Annotated[
        int | None,
        documented_option(
            "--batch-size",
            env_var="LITE_DETR_EVAL_BATCH_SIZE",
            metavar="INTEGER",
            default=f"1; {_GPU_BATCH_SIZE} on a GPU",
            help="images of one shape bucket in a batch",
        ),
    ] = None,
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
            help="also write the detections as a COCO results file; a stopped run can be resumed",
        ),
    ] = None,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_EVAL_OVERWRITE")] = False,
    as_json: Annotated[
        bool,
        documented_option(
            "--json", env_var="LITE_DETR_EVAL_JSON", help="print the scores as a JSON object"
        ),
    ] = False,
) -> int:
    """Score a model on annotated images: COCO AP, AP50, AP75, by size, AR, and by class.

    Images are decoded, resized and detected in as in serving; so are the times measured. The
    annotations and the headers of the images are checked at the start.

    With --results, detections are kept in RESULTS.partial until all are there: the same command
    then resumes a run that was stopped.
    """
    for flag, value in (("--batch-size", batch_size), ("--limit", limit)):
        if value is not None and value < 1:
            raise typer.BadParameter(f"{flag}: must be at least 1, not {value}")
    settings = offline_settings(model, device, precision, cache_dir, jpeg_decoding)
    subject, open_data = _named_data(data, annotations, images, coco, split)
    if results is not None:
        from model.weights.info import resolve_model  # noqa: PLC0415

        weights = resolve_model(settings.model, settings.model_cache_dir)
        check_output_file(results, overwrite=overwrite, inputs=(subject, weights))
    from model.evaluation.evaluate import evaluate  # noqa: PLC0415
    from service.engine.load import load_from_settings  # noqa: PLC0415

    predictor, info = load_from_settings(settings)
    run = _describe_run(predictor, info) | {"jpeg_decoding": settings.jpeg_decoding}
    with evaluation_progress() as progress, _naming_what_is_kept(results):
        scores = evaluate(
            predictor,
            info.labels,
            open_data(report=progress.print, limit=limit),
            batch_size=batch_size or (_GPU_BATCH_SIZE if predictor.runs_batches_whole else 1),
            limit=limit,
            results_path=results,
            overwrite=overwrite,
            report=progress.print,
            progress=progress.show,
            jpeg_decoding=settings.jpeg_decoding,
            run=run,
        )
    with writing_to_stdout():
        _print_scores(scores, info, run, as_json=as_json)
    return _report_unreadable(scores, results)


class _OpenData(Protocol):
    """Opens the named data."""

    def __call__(self, *, report: Callable[[str], None], limit: int | None) -> DataSet:
        """See `model.data.data_sets.open_data_set`."""


def _named_data(
    data: Path | None,
    annotations: Path | None,
    images: Path | None,
    coco: Path | None,
    split: str | None,
) -> tuple[Path, _OpenData]:
    """Returns the file or folder that the flags name, and what opens it.

    Raises:
        typer.BadParameter: for flags that are missing or exclude each other.
        DataError: for a folder of --coco without these files.
    """
    pair = "--images" if annotations is None else "--annotations"
    ways = {"--data": data, pair: annotations or images, "--coco": coco}
    given = [flag for flag, value in ways.items() if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"{given[0]} and {given[1]} exclude each other")
    if split is not None and data is None and coco is None:
        raise typer.BadParameter("--split is for --data or --coco")
    if data is not None:
        return data, partial(_open_split, data, split)
    if coco is not None:
        files = find_coco_files(coco, split or DEFAULT_SPLIT)
    elif annotations is not None and images is not None:
        files = CocoFiles(annotations, images)
    else:
        missing = "--annotations" if annotations is None else "--images"
        raise typer.BadParameter(
            f"{missing} is missing: name the data with --data PATH, with --annotations FILE and "
            "--images FOLDER, or with --coco FOLDER"
        )
    from model.data.data_sets import open_coco  # noqa: PLC0415

    return files.annotations, partial(open_coco, files.annotations, files.images)


def _open_split(
    path: Path, split: str | None, *, report: Callable[[str], None], limit: int | None
) -> DataSet:
    """Opens a split of --data; a JSON file has only one.

    Raises:
        DataError: if there is none of that name, or for data that cannot be used.
    """
    from model.data.data_sets import open_data_set  # noqa: PLC0415

    is_json = path.suffix.lower() == ".json" and not path.is_dir()
    name = split or ("train" if is_json else _SPLIT)
    opened = open_data_set(path, name, report, limit=limit)
    if opened is None:
        hint = (
            "leave --split out"
            if is_json
            else "--split names another one, such as train; the scores of images that a training "
            "held out are in its report.md"
        )
        raise DataError(f"{path} has no split named {name}: {hint}")
    return opened


@contextmanager
def _naming_what_is_kept(results: Path | None) -> Iterator[None]:
    """After Ctrl-C, names the file from which the same command resumes."""
    from model.evaluation.saved_detections import partial_file  # noqa: PLC0415

    try:
        yield
    except KeyboardInterrupt:
        partial = None if results is None else partial_file(results)
        if partial is not None and os.path.isfile(partial):
            typer.echo(f"stopped; the same command resumes from {partial}", err=True)
        raise


def _describe_run(predictor: Predictor, info: ModelInfo) -> dict[str, Any]:
    """Returns what identifies a model and the way in which it runs."""
    return {
        "model": info.name,
        "model_version": info.version,
        "device": predictor.device.type,
        "precision": predictor.precision,
        "program": f"lite-detr {version('lite-detr-service')}",
    }


def _print_scores(scores: Scores, info: ModelInfo, run: dict[str, Any], *, as_json: bool) -> None:
    """Prints the scores, how they were measured, and the published AP if it is comparable."""
    from model.evaluation.protocol import describe_protocol, published_ap  # noqa: PLC0415
    from model.evaluation.scores import format_scores  # noqa: PLC0415

    published = published_ap(info.config, info.labels)
    comparable = published is not None and scores.is_val2017 and not scores.unreadable_images
    protocol = describe_protocol(info.config)
    if as_json:
        more = {"run": run, "protocol": protocol}
        typer.echo(scores.to_json(**more, published_ap=published if comparable else None))
        return
    typer.echo(format_scores(scores))
    scaled = ", scaled JPEGs" if run["jpeg_decoding"] == "scaled" else ""
    how = f"{run['precision']} on {run['device']}{scaled}"
    typer.echo(f"{info.name} {info.version}, {how}: {protocol}")
    if published is not None and not comparable:
        typer.echo(f"not compared with the published AP, {published}: that is of all of val2017")
    elif published is not None and scores.ap is not None:
        typer.echo(f"published AP {published}, here {100 * scores.ap:.1f}")


def _report_unreadable(scores: Scores, results: Path | None) -> int:
    """Names the images that could not be read; returns the exit status."""
    if not scores.unreadable_images:
        return 0
    count = len(scores.unreadable_images)
    for line in scores.unreadable_images:
        typer.echo(f"not read: {line}", err=True)
    text = f"{count} image{'s' * (count > 1)} could not be read and count as without detections"
    if results is not None:
        text += (
            f"; {results} is not written, but the other images are kept: repair the files and run "
            "the same command again"
        )
    typer.echo(f"lite-detr: {text}", err=True)
    return 1
