"""`lite-detr train`: options from flags, environment and defaults, then `model.training.loop`."""

from __future__ import annotations

from typing import Any

import typer

from model.training.options import TrainOptions
from service.cli.failure import CommandFailed
from service.cli.options import (
    command_with_options,
    help_text,
    model_options,
    parse_options,
)

TRAIN_OPTIONS = model_options(TrainOptions, "LITE_DETR_TRAIN_")

_EPILOG = """[bold]Examples[/]

  lite-detr train --output runs/codes --max-minutes 60
  lite-detr train --annotations train.json --images train/ --symmetries hflip --name parts
  lite-detr train --output runs/codes --resume

The run writes model.safetensors for `lite-detr serve --model`, last.pt to resume from, the loss
curve and sample images into the output folder at intervals. Ctrl-C saves, then ends it. COCO data
is checked before the first iteration.
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("train", help=help_text(_train), epilog=_EPILOG)(
        command_with_options(_train, TRAIN_OPTIONS)
    )


def _train(given: dict[str, Any]) -> None:
    """Train a detector on COCO-format data, or on generated images of printed codes."""
    options = parse_options(TrainOptions, TRAIN_OPTIONS, given)
    from model.training.loop import TrainingFailed, train  # noqa: PLC0415
    from model.training.state import TrainingStateError  # noqa: PLC0415

    try:
        path = train(options)
    except (TrainingFailed, TrainingStateError) as error:
        raise CommandFailed(str(error)) from error
    typer.echo(f"{path}\nserve it: lite-detr serve --model {path}", err=True)
