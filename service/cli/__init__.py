"""The console command `lite-detr`.

Each subcommand has its own module, which imports torch and the engine only when it runs, so that
`--help` is fast. An error is printed as one line, errors of a data set as one line per kind; the
exit status is 2 for arguments, data and outputs that are refused, and 1 for a failed command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from service.cli import (
    bench,
    data,
    detect,
    evaluate,
    explain,
    export,
    flops,
    key,
    ray,
    serve,
    train,
    weights,
)
from service.cli.failure import (
    DEBUG_VARIABLE,
    CommandFailed,
    describe_failure,
    enable_debugging,
    exit_status,
    is_debugging,
)
from service.cli.variables import PREFIXED_COMMANDS, unknown_to_command
from service.cpus import PASSIVE_OMP_WAIT

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_EPILOG = (
    "Start with [bold]lite-detr serve[/] and open the address that it prints. "
    "Every command has its own help: [bold]lite-detr detect --help[/]. Every flag is also an "
    "environment variable, shown in its help; the flag takes precedence."
)

app = typer.Typer(
    name="lite-detr",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
)
serve.register(app)
ray.register(app)
detect.register(app)
data.register(app)
train.register(app)
evaluate.register(app)
weights.register(app)
explain.register(app)
export.register(app)
bench.register(app)
flops.register(app)
key.register(app)


@app.callback(invoke_without_command=True)
def lite_detr(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar=DEBUG_VARIABLE, help="Show the traceback of an error."),
    ] = False,
) -> None:
    """Detect objects in images with Lite DETR: serve a model, run it here, or train your own.

    The default model detects printed codes; it is not a COCO model. For COCO models see
    [bold]lite-detr weights --help[/].
    """
    if debug:
        enable_debugging()
    if show_version:
        typer.echo(f"lite-detr {version('lite-detr-service')}")
        raise typer.Exit()
    name = context.invoked_subcommand
    if name is None:
        typer.echo(context.get_help())
    elif name in PREFIXED_COMMANDS:
        for line in unknown_to_command(name, context.command.commands[name]):  # type: ignore[attr-defined]
            print(f"lite-detr: {line}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: command-line arguments without the program name; None: those of the process.

    Returns:
        The exit status: 0 success, 1 failure, 2 refused arguments, data or outputs, 130
        interrupted, 143 a training stopped by SIGTERM.
    """
    for variable, value in PASSIVE_OMP_WAIT.items():  # before any command imports torch
        os.environ.setdefault(variable, value)
    try:
        status = app(args=arguments, prog_name="lite-detr", standalone_mode=False)
    except TyperException as error:
        return _print_error(error.format_message(), error.exit_code)
    except typer.Abort:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) closed the pipe; avoid a second error when Python flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if is_debugging() and not isinstance(error, CommandFailed):
            raise
        return _print_error(describe_failure(error), exit_status(error))
    return status if isinstance(status, int) else 0


def _print_error(message: str, status: int) -> int:
    print(f"lite-detr: {message}", file=sys.stderr)
    return status
