"""Generates docs/configuration.md from the options of the commands: `make docs`."""

from __future__ import annotations

from collections.abc import Iterable

from service.cli.options import OptionSpec, describe_default, describe_type
from service.cli.ray import RAY_OPTIONS
from service.cli.serve import SERVE_OPTIONS
from service.cli.train import TRAIN_OPTIONS

_OPENING = """# Configuration

`make docs` generates this page from the options of the commands; do not edit it by hand.

A flag takes precedence over the environment variable, which takes precedence over the default. An
invalid value stops the start, with a message that names the flag and the variable. An empty
variable counts as unset. A variable whose name begins with `LITE_DETR_` but is that of no option is
reported at the start, with the nearest name. The addresses that Kubernetes sets for Services, such
as `LITE_DETR_HTTP_PORT=tcp://10.0.0.1:8000`, are ignored.

This page lists the options of `serve`, `ray` and `train`. The other commands document theirs, with
their variables, with `--help`.
"""


def configuration_page() -> str:
    """Returns the page as Markdown."""
    parts = [
        _OPENING,
        *_section("lite-detr serve", SERVE_OPTIONS),
        *_section("lite-detr ray", RAY_OPTIONS),
        *_section("lite-detr train", TRAIN_OPTIONS),
    ]
    return "\n".join(parts) + "\n"


def _section(command: str, specs: Iterable[OptionSpec]) -> list[str]:
    lines = [f"## {command}"]
    panel: str | None = ""
    for spec in specs:
        if spec.panel != panel:
            panel = spec.panel
            lines += ["", f"### {panel or 'General'}", ""]
            lines += ["| flag, variable | value | default | meaning |", "|---|---|---|---|"]
        lines.append(_row(spec))
    return [*lines, ""]


def _row(spec: OptionSpec) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (spec.flag, *spec.short_flags))
    value = "on, off" if spec.is_switch else describe_type(spec.annotation)
    default = describe_default(spec.default)
    cells = (
        f"{flags}<br>`{spec.env_var}`",
        value,
        f"`{default}`" if default else "unset",
        spec.help,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(configuration_page(), end="")
