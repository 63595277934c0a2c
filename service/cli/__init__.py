"""The console command `lite-detr`: top of the house, imports everything below and nothing above.

Each command lives in a room of its own and imports torch and the engine only when it runs, so
that `--help` answers at once. What goes wrong is told here in one line: exit status 2 for a
command that cannot be understood, 1 for one that failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from service.cli import bench, detect, evaluate, key, serve, train, weights
from service.cli.failure import (
    DEBUG_VARIABLE,
    CommandFailed,
    debugging,
    describe_failure,
    set_debugging,
)
from service.cpus import WAIT_POLITELY

_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended

_EPILOG = (
    "Start here: [bold]lite-detr serve[/], then open the address that it prints. "
    "Each command explains itself: [bold]lite-detr detect --help[/]. Every flag is also an "
    "environment variable, named beside it; a flag wins over the variable."
)

app = typer.Typer(
    name="lite-detr",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
)
serve.register(app)
detect.register(app)
train.register(app)
evaluate.register(app)
weights.register(app)
bench.register(app)
key.register(app)


@app.callback(invoke_without_command=True)
def lite_detr(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", envvar=DEBUG_VARIABLE, help="Show the whole traceback of a failure."
        ),
    ] = False,
) -> None:
    """Find objects in photos with Lite DETR: as a service, from the shell, or trained on your own.

    The model that comes with it finds printed codes; it is not a COCO model.
    [bold]lite-detr weights --help[/] tells how to use one.
    """
    if debug:
        set_debugging()
    if show_version:
        typer.echo(f"lite-detr {version('lite-detr-service')}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; those of the process where None.

    Returns:
        The exit status: 0 well, 1 failed, 2 not understood, 130 interrupted.
    """
    for variable, value in WAIT_POLITELY.items():  # before any command imports torch
        os.environ.setdefault(variable, value)
    try:
        status = app(args=arguments, prog_name="lite-detr", standalone_mode=False)
    except TyperException as error:
        return _complain(error.format_message(), error.exit_code)
    except typer.Abort:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; keep Python from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debugging() and not isinstance(error, CommandFailed):
            raise
        return _complain(describe_failure(error), 1)
    return status if isinstance(status, int) else 0


def _complain(problem: str, status: int) -> int:
    print(f"lite-detr: {problem}", file=sys.stderr)
    return status
