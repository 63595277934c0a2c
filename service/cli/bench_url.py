"""One run of `lite-detr bench --url`: load on a running service, in rate steps."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.data.output_files import check_output_file, write_output_whole
from model.images.limits import ImageLimits
from service.cli.failure import CommandFailed, writing_to_stdout
from service.cli.inputs import UnreadableFile, find_images
from service.errors import DetectionError
from service.load.grpc_target import GrpcTarget
from service.load.report import StepReport
from service.load.steps import Plan, rounded, run_plan, sustained_rate
from service.load.target import Address, Checked, HttpTarget, ImageFile, Target, TargetError

_SAMPLES = Path(__file__).parents[1] / "rest" / "static" / "samples"
_MAX_IMAGES = 100  # of a folder
_LIMITS = ImageLimits(max_bytes=1 << 30, max_pixels=1 << 40)  # the service has its own
_FIRST_SHARE = 0.25  # the first rate, of what one client at a time gets
_LATE_MS = 50.0


@dataclass(frozen=True)
class UrlOptions:
    """What is measured.

    Attributes:
        address: of the service.
        grpc: whether calls are sent by gRPC instead of HTTP.
        images: file, or folder of files; None: the samples that come with the service.
        rates: requests per second, one step each; empty: steps until the service is saturated.
        max_rate: the highest of these.
        step_seconds: duration of a step.
        api_key: None for none.
        plot: PNG or SVG file; None: none is written.
        overwrite: whether the plot may replace a file.
    """

    address: Address
    grpc: bool
    images: Path | None
    rates: tuple[float, ...]
    max_rate: float
    step_seconds: float
    api_key: str | None
    plot: Path | None
    overwrite: bool = False


@dataclass(frozen=True)
class LoadFigures:
    """The figures of a run."""

    url: str
    protocol: str
    model: str
    images: int  # that the requests have in turn
    arrivals: str
    usual_ms: float  # latency of a request without load
    sustained_per_s: float | None  # the highest rate that did not saturate the service
    highest_per_s: float  # successful responses per second, of all steps
    interrupted: bool
    steps: tuple[StepReport, ...]


def measure_service(options: UrlOptions) -> LoadFigures:
    """Measures a service; reports each step on a terminal.

    Raises:
        CommandFailed: if there is no usable service or image.
        OutputError: for a plot that would replace a file, or has no folder.
    """
    if options.plot is not None:
        _check_plot(options.plot, options.images, overwrite=options.overwrite)
    images = read_images(options.images)
    target: Target = (GrpcTarget if options.grpc else HttpTarget)(options.address, options.api_key)
    try:
        checked = target.check(images)
    except TargetError as error:
        raise CommandFailed(str(error)) from error
    first = rounded(max(0.01, _FIRST_SHARE * 1000 / checked.usual_ms))
    plan = Plan(options.rates, min(first, options.max_rate), options.max_rate, options.step_seconds)
    _report(f"{checked.model} at {options.address.url}; without load {checked.usual_ms:.0f} ms")
    reports = uvloop.run(
        run_plan(plan, partial(target.open, images), checked.usual_ms, _report_step)
    )
    if reports and not any(each.ok for each in reports) and not reports[-1].interrupted:
        raise CommandFailed(f"no request was successful: {_errors(reports[-1])}")
    return _figures(options, checked, len(images), reports)


def _figures(
    options: UrlOptions, checked: Checked, num_images: int, reports: Sequence[StepReport]
) -> LoadFigures:
    return LoadFigures(
        url=options.address.url,
        protocol="grpc" if options.grpc else "http",
        model=checked.model,
        images=num_images,
        arrivals="poisson",
        usual_ms=round(checked.usual_ms, 2),
        sustained_per_s=sustained_rate(reports),
        highest_per_s=max((each.ok_per_s for each in reports), default=0.0),
        interrupted=any(each.interrupted for each in reports),
        steps=tuple(reports),
    )


def read_images(path: Path | None) -> list[ImageFile]:
    """Reads the images to send.

    Args:
        path: a file, or a folder whose image files are read; None: the samples.

    Raises:
        CommandFailed: if there is none, or one cannot be read.
    """
    images = []
    for found in find_images([str(path or _SAMPLES)])[:_MAX_IMAGES]:
        try:
            images.append(ImageFile(found.name, found.read(_LIMITS)))
        except (UnreadableFile, DetectionError) as error:
            raise CommandFailed(f"{found.name}: {error}") from error
    return images


def print_figures(figures: LoadFigures, *, as_json: bool) -> None:
    """Prints the figures as a table, or as a JSON object."""
    with writing_to_stdout():
        if as_json:
            print(json.dumps(asdict(figures), indent=2))
        else:
            _print_table(figures)


def _print_table(figures: LoadFigures) -> None:
    console = Console(highlight=False)
    # A Text, as a str would be parsed as markup: the address and the name may have brackets.
    title = Text(f"{figures.model} at {figures.url}, {figures.protocol}", style="table.title")
    table = Table(title=title, title_justify="left")
    for heading in ("requests/s", "successful/s", "p50 ms", "p90 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="right")
    table.add_column("errors")
    for step in sorted(figures.steps, key=lambda each: each.offered_per_s):
        times = (_ms(value) for value in (step.p50_ms, step.p90_ms, step.p99_ms, step.max_ms))
        errors = Text(_errors(step))
        table.add_row(f"{step.offered_per_s:g}", f"{step.ok_per_s:.2f}", *times, errors)
    console.print(table)
    if all(step.interrupted for step in figures.steps):
        console.print("No step was complete.")
    elif figures.sustained_per_s is None:
        console.print(f"Saturated at every rate; at most {figures.highest_per_s:.2f} per second.")
    else:
        console.print(
            f"The highest rate without saturation: {figures.sustained_per_s:g} per second."
        )
    late = max((each.late_p99_ms for each in figures.steps), default=0.0)
    if late > _LATE_MS:
        console.print(
            f"The load generator itself was up to {late:.0f} ms late (p99); its machine is busy."
        )
    if figures.interrupted:
        console.print("Interrupted: the last step is incomplete.")


def draw_figures(figures: LoadFigures, path: Path) -> None:
    """Draws latency and throughput over the offered rate.

    Args:
        figures: of a run.
        path: of the PNG or SVG file.

    Raises:
        OSError: if it cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    steps = sorted(figures.steps, key=lambda each: each.offered_per_s)
    rates = [step.offered_per_s for step in steps]
    figure = Figure(figsize=(8.0, 4.5), dpi=110, layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    for name in ("p50_ms", "p90_ms", "p99_ms"):
        values = [getattr(step, name) for step in steps]
        known = [(rate, value) for rate, value in zip(rates, values, strict=True) if value]
        if known:
            latency.plot(*zip(*known, strict=True), marker=".", label=name.removesuffix("_ms"))
            latency.legend(fontsize=8)
    latency.set(xlabel="requests per second", ylabel="ms", yscale="log", title="latency")
    throughput.plot(rates, [step.ok_per_s for step in steps], marker=".")
    throughput.plot(rates, rates, color="grey", linewidth=0.8, linestyle="--")
    throughput.set(xlabel="requests per second", title="successful per second")
    for axes in (latency, throughput):
        axes.grid(alpha=0.3)
    encoded = io.BytesIO()
    figure.savefig(encoded, format=path.suffix.lower().removeprefix("."))
    write_output_whole(path, encoded.getvalue())


def _check_plot(path: Path, images: Path | None, *, overwrite: bool) -> None:
    if find_spec("matplotlib") is None:
        raise CommandFailed("--plot needs matplotlib: pip install 'lite-detr-service[train]'")
    inputs = [] if images is None else [images]
    check_output_file(path, overwrite=overwrite, inputs=inputs)


def _report_step(step: StepReport) -> None:
    state = ", saturated" if step.saturated else ""
    _report(
        f"{step.offered_per_s:g} per second: {step.ok} of {step.sent} successful, "
        f"p99 {_ms(step.p99_ms)} ms{state}"
    )


def _report(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _errors(step: StepReport) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in step.errors.items()) or "-"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
