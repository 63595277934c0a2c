"""`lite-detr bench`: how fast this machine is, by kernel and by model, against plain PyTorch."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.offline_settings import (
    CacheDirOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    offline_settings,
)
from service.cli.options import documented_option, help_text

_MAX_SECONDS = 110.0
_EPILOG = """[bold]Examples[/]

  lite-detr bench
  lite-detr bench --model runs/codes/model.safetensors --device cuda --json
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("bench", help=help_text(bench), epilog=_EPILOG)(bench)


def bench(  # noqa: PLR0913 - a command's flags
    *,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheDirOption = None,
    seconds: Annotated[
        float,
        documented_option(
            "--seconds",
            env_var="LITE_DETR_BENCH_SECONDS",
            metavar="FLOAT",
            default="60",
            help="about how long to measure; a longer run gives steadier medians",
        ),
    ] = 60.0,
    as_json: Annotated[
        bool,
        documented_option(
            "--json", env_var="LITE_DETR_BENCH_JSON", help="print the figures as a JSON object"
        ),
    ] = False,
) -> None:
    """Measure this machine: attention kernels, latency and throughput of a model.

    Each figure is compared with the same work in plain PyTorch. The two alternate, so the ratios
    hold on a busy machine, too. Nothing is sent anywhere. For the whole service see
    benchmarks/serving.
    """
    if not 0 < seconds <= _MAX_SECONDS:
        raise typer.BadParameter(f"--seconds: must be above 0 and at most {_MAX_SECONDS:g}")
    settings = offline_settings(model, device, precision, cache_dir)
    from service.cli.bench_run import as_document, measure_machine, print_tables  # noqa: PLC0415

    figures = measure_machine(settings, seconds)
    if as_json:
        typer.echo(as_document(figures))
    else:
        print_tables(figures)
