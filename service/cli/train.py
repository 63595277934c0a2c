"""`lite-detr train`: options from flags, environment and defaults, then `model.training.loop`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from model.training.options import TrainOptions
from model.training.stopping import Interrupted, interrupted_by_signals
from service.cli.failure import CommandFailed, describe_failure, is_debugging
from service.cli.options import (
    command_with_options,
    help_text,
    model_options,
    parse_options,
)

TRAIN_OPTIONS = model_options(TrainOptions, "LITE_DETR_TRAIN_")

_RUN_FOLDER = Annotated[
    Path | None,
    typer.Argument(metavar="OUTPUT", help="The output folder, as --output.", show_default=False),
]

_EPILOG = """[bold]Your own data[/]

  lite-detr data check my-data/
  lite-detr train --data my-data/ --output runs/mine --max-minutes 12
  lite-detr serve --model runs/mine/model.safetensors

The data is a folder in the layout of COCO, YOLO or Pascal VOC, or a COCO JSON file and its images
(--annotations train.json --images train/). Start weights, image size, schedule and augmentation
follow from the data; each choice is printed, and a flag overrides it.

[bold]What a run writes[/]

The output folder gets model.safetensors (the best weights, to serve), last.pt (to continue from),
log.jsonl, and at the end report.md with curves, a table of the classes and the worst images.
Ctrl-C saves, then ends the run with status 130 (SIGTERM: 143). To continue it:

  lite-detr train --resume runs/mine

[bold]Several GPUs[/]

  torchrun --nproc-per-node 4 -m service train --data my-data/ --output runs/mine

[bold]Printed codes[/]

Without data, a run generates images of printed codes, as for the default model:

  lite-detr train --output runs/codes --max-minutes 60
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("train", help=help_text(_train), epilog=_EPILOG)(
        command_with_options(_train, TRAIN_OPTIONS, argument=("run_folder", _RUN_FOLDER))
    )


def _train(given: dict[str, Any]) -> None:
    """Train a detector on your own data, or on generated images of printed codes."""
    folder = given.pop("run_folder", None)
    if folder is not None:
        if "output" in given and Path(given["output"]) != Path(folder):
            raise typer.BadParameter(
                f"the output folder is given twice: {folder} and --output {given['output']}"
            )
        given["output"] = str(folder)
    options = parse_options(TrainOptions, TRAIN_OPTIONS, given)
    try:
        with interrupted_by_signals():
            _run(options)
    except Interrupted as stop:
        hint = _hint(stop) or ": nothing was trained"
        typer.echo(f"lite-detr: {stop}{hint}", err=True)
        raise typer.Exit(stop.exit_status) from stop


def _run(options: TrainOptions) -> None:
    """Trains, and prints where the model is.

    Raises:
        CommandFailed: for errors of a run that has begun, with the command that continues it.
        Interrupted: for a signal before it, and for a second one.
        typer.Exit: after a signal that stopped the run.
    """
    from model.training.loop import (  # noqa: PLC0415
        CallbackError,
        ProcessLost,
        TrainingFailed,
        TrainingStopped,
        train,
    )
    from model.training.processes import is_first_process  # noqa: PLC0415
    from model.training.state import TrainingStateError  # noqa: PLC0415

    status = 0
    path: Path | None
    try:
        path = train(options)
    except TrainingStopped as stop:
        path, status = stop.model, stop.exit_status
    except Exception as error:
        hint = _hint(error)
        is_own = isinstance(
            error, CallbackError | ProcessLost | TrainingFailed | TrainingStateError
        )
        if is_debugging() or not (hint or is_own):
            raise
        text = str(error) if is_own else describe_failure(error)
        raise CommandFailed(f"{text}{hint}") from error
    if is_first_process():  # the others end before the model is complete
        typer.echo(f"{path}\nserve it: lite-detr serve --model {quote(str(path))}", err=True)
    if status:
        raise typer.Exit(status)


def _hint(error: BaseException) -> str:
    """Returns the lines that training added to an exception: how the run is continued."""
    return "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
