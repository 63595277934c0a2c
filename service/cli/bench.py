"""`lite-detr bench`: kernels and model of this machine, or with --url a running service."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.offline_settings import (
    CacheDirOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    offline_settings,
)
from service.cli.options import documented_option, help_text, overwrite_option, split_list

if TYPE_CHECKING:
    from service.cli.bench_url import UrlOptions
    from service.load.target import Address

_MAX_SECONDS = 110.0
_EPILOG = """[bold]Examples[/]

  lite-detr bench
  lite-detr bench --model runs/codes/model.safetensors --device cuda --json
  lite-detr bench --url http://localhost:8000
  lite-detr bench --url http://localhost:8001 --grpc --images photos/ --plot load.svg
"""
_SERVICE = "A running service"
_PLOT_SUFFIXES = (".png", ".svg")
_MAX_REQUESTS = 500_000  # of a step; their responses are kept
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("bench", help=help_text(bench), epilog=_EPILOG)(bench)


def bench(  # noqa: PLR0913 - a command's flags
    context: typer.Context,
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
    url: Annotated[
        str | None,
        documented_option(
            "--url",
            env_var="LITE_DETR_BENCH_URL",
            metavar="URL",
            panel=_SERVICE,
            help="address of a running service; the options below are for it",
        ),
    ] = None,
    grpc: Annotated[
        bool,
        documented_option(
            "--grpc",
            env_var="LITE_DETR_BENCH_GRPC",
            panel=_SERVICE,
            help="send calls by gRPC; the port of --url is that of gRPC",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        documented_option(
            "--images",
            env_var="LITE_DETR_BENCH_IMAGES",
            metavar="PATH",
            panel=_SERVICE,
            help="image, or folder of images, sent in turn; unset: the four samples",
        ),
    ] = None,
    rates: Annotated[
        str | None,
        documented_option(
            "--rates",
            env_var="LITE_DETR_BENCH_RATES",
            metavar="FLOAT,...",
            panel=_SERVICE,
            help="requests per second, one step each; unset: twice as many in each step until the "
            "service is saturated",
        ),
    ] = None,
    max_rate: Annotated[
        float,
        documented_option(
            "--max-rate",
            env_var="LITE_DETR_BENCH_MAX_RATE",
            metavar="FLOAT",
            default="2000",
            panel=_SERVICE,
            help="the highest rate without --rates",
        ),
    ] = 2000.0,
    step_seconds: Annotated[
        float,
        documented_option(
            "--step-seconds",
            env_var="LITE_DETR_BENCH_STEP_SECONDS",
            metavar="FLOAT",
            default="5",
            panel=_SERVICE,
            help="duration of a step; a slow one takes longer, for ten requests",
        ),
    ] = 5.0,
    api_key: Annotated[
        str | None,
        documented_option(
            "--api-key",
            env_var="LITE_DETR_BENCH_API_KEY",
            metavar="KEY",
            panel=_SERVICE,
            help="key that the service requires; other users of this machine can see flags, so "
            "prefer the variable",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        documented_option(
            "--plot",
            env_var="LITE_DETR_BENCH_PLOT",
            metavar="FILE",
            panel=_SERVICE,
            help="write latency and throughput over the rate as PNG or SVG (needs the extra train)",
        ),
    ] = None,
    overwrite: Annotated[bool, overwrite_option("LITE_DETR_BENCH_OVERWRITE")] = False,
) -> None:
    """Measure this machine, or with --url the load that a running service sustains.

    Without --url: attention kernels, latency and throughput of a model. Each figure is compared
    with the same work in plain PyTorch. The two alternate, so the ratios hold on a busy machine,
    too. Nothing is sent anywhere.

    With --url: requests arrive at random times of a growing rate, whether or not earlier ones have
    been answered, until the service is saturated. Latency counts from the time at which a request
    was due. Ctrl-C prints the results so far.
    """
    _check_flags(context, url)
    if url is not None:
        from service.cli.bench_url import UrlOptions  # noqa: PLC0415

        rate_list = _rates(rates)
        _check_numbers(rate_list, max_rate, step_seconds)
        if plot is not None and plot.suffix.lower() not in _PLOT_SUFFIXES:
            raise typer.BadParameter(f"--plot: {plot} is neither .png nor .svg")
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise typer.BadParameter("--api-key: a key has ASCII characters without spaces")
        _measure_service(
            UrlOptions(
                address=_address(url),
                grpc=grpc,
                images=images,
                rates=rate_list,
                max_rate=max_rate,
                step_seconds=step_seconds,
                api_key=api_key or None,
                plot=plot,
                overwrite=overwrite,
            ),
            as_json=as_json,
        )
        return
    if not 0 < seconds <= _MAX_SECONDS:
        raise typer.BadParameter(f"--seconds: must be above 0 and at most {_MAX_SECONDS:g}")
    settings = offline_settings(model, device, precision, cache_dir)
    from service.cli.bench_run import as_document, measure_machine, print_tables  # noqa: PLC0415

    figures = measure_machine(settings, seconds)
    if as_json:
        typer.echo(as_document(figures))
    else:
        print_tables(figures)


def _check_flags(context: typer.Context, url: str | None) -> None:
    """Refuses flags of the other kind of measurement.

    Raises:
        BadParameter: names the flag.
    """
    given = {
        parameter.name
        for parameter in context.command.params
        if parameter.name is not None
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    }
    of_service = {"grpc", "images", "rates", "max_rate", "step_seconds", "api_key"}
    of_service |= {"plot", "overwrite"}
    of_machine = {"model", "device", "precision", "cache_dir", "seconds"}
    for name in sorted(given & (of_machine if url is not None else of_service)):
        flag = "--" + name.replace("_", "-")
        wrong = "measures this machine, not --url" if url is not None else "needs --url"
        raise typer.BadParameter(f"{flag}: {wrong}")


def _address(url: str) -> Address:
    from service.load.target import Address  # noqa: PLC0415

    try:
        return Address.of(url)
    except ValueError as error:
        raise typer.BadParameter(f"--url: {error}") from None


def _rates(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        rates = tuple(float(part) for part in split_list(text))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise typer.BadParameter(f"--rates: {text!r} is not a list of numbers above 0")
    return rates


def _check_numbers(rates: tuple[float, ...], max_rate: float, step_seconds: float) -> None:
    for flag, value in (("--max-rate", max_rate), ("--step-seconds", step_seconds)):
        if not 0 < value < math.inf:
            raise typer.BadParameter(f"{flag}: must be above 0")
    if max(rates, default=max_rate) * step_seconds > _MAX_REQUESTS:
        flag = "--rates" if rates else "--max-rate"
        raise typer.BadParameter(
            f"{flag}: a step of {step_seconds:g} s would have more than {_MAX_REQUESTS} requests"
        )


def _measure_service(options: UrlOptions, *, as_json: bool) -> None:
    from service.cli.bench_url import (  # noqa: PLC0415
        draw_figures,
        measure_service,
        print_figures,
    )

    figures = measure_service(options)
    print_figures(figures, as_json=as_json)
    if options.plot is not None and figures.steps:
        draw_figures(figures, options.plot)
    if figures.interrupted:
        raise typer.Exit(_INTERRUPTED)
