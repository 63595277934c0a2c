"""Command-line options generated from the fields of an options class.

The options of `serve` come from `service.settings.Settings`, those of `train` from
`model.training.options.TrainOptions`: name, type, default, bounds and help are those of the field.
pydantic converts the text from the command line to the field's type; an error is one line that
names the flag and its environment variable.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from rich.markup import escape

ModelT = TypeVar("ModelT", bound=BaseModel)

_NO_DEFAULT_SHOWN = (None, "", ())
_METAVARS: dict[Any, str] = {int: "INTEGER", float: "FLOAT", Path: "PATH", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """One option of a command."""

    name: str  # name of the field
    annotation: Any  # type of the field
    default: Any
    help: str
    env_var: str
    panel: str | None = None  # heading in --help
    click_reads_env: bool = True  # False if the options class reads the environment itself
    short_flags: tuple[str, ...] = ()  # further names of the flag
    hidden: bool = False  # in --help

    @property
    def flag(self) -> str:
        """The flag, such as --max-batch-size."""
        return "--" + self.name.replace("_", "-")

    @property
    def error_name(self) -> str:
        """The flag and the environment variable, as error messages name the option."""
        return f"{self.flag} (env var {self.env_var})"

    @property
    def is_switch(self) -> bool:
        """Whether the option is `--flag/--no-flag`, without a value."""
        return self.annotation is bool


def model_options(
    model: type[BaseModel],
    env_prefix: str,
    *,
    short_flags: Mapping[str, tuple[str, ...]] | None = None,
    click_reads_env: bool = True,
) -> tuple[OptionSpec, ...]:
    """Returns the options for the fields of a pydantic model.

    Args:
        model: the class. The help text is the description of the field; the key `section` of its
            `json_schema_extra` is the heading of that field and of those after it.
        env_prefix: of the environment variables.
        short_flags: further names of a flag, by field name.
        click_reads_env: False if the model reads the environment itself.
    """
    specs, panel = [], None
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        panel = str(extra["section"]) if isinstance(extra, dict) and "section" in extra else panel
        specs.append(
            OptionSpec(
                name=name,
                annotation=field.annotation,
                default=field.get_default(call_default_factory=True),
                help=field.description or "",
                env_var=(env_prefix + name).upper(),
                panel=panel,
                click_reads_env=click_reads_env,
                short_flags=(short_flags or {}).get(name, ()),
            )
        )
    return tuple(specs)


def documented_option(  # noqa: PLR0913 - typer's own options, by keyword
    *flags: str,
    help: str,
    env_var: str,
    default: str = "",
    metavar: str | None = None,
    panel: str | None = None,
    click_reads_env: bool = True,
    **extra: Any,
) -> Any:
    """Returns a typer option whose help text ends with its environment variable and default.

    Typer would truncate long names.
    """
    text = escape(help) + f" [dim yellow]{escape(f'[env var: {env_var}]')}[/]"
    if default:
        text += f" [dim]{escape(f'[default: {default}]')}[/]"
    return typer.Option(
        *flags,
        help=text,
        metavar=metavar,
        envvar=env_var if click_reads_env else None,
        show_envvar=False,
        show_default=False,
        rich_help_panel=panel,
        **extra,
    )


def command_with_options(
    run: Callable[[dict[str, Any]], None],
    specs: tuple[OptionSpec, ...],
    *,
    argument: tuple[str, Any] | None = None,
) -> Callable[..., None]:
    """Returns a function that typer turns into a command with these options.

    Args:
        run: called with the given values by field name: text, or a bool for a switch.
        specs: the options.
        argument: name and type of an argument before them, which may be left out.
    """

    def command(**values: Any) -> None:
        run({name: value for name, value in values.items() if value is not None})

    parameters = [
        inspect.Parameter(
            spec.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                bool | None if spec.is_switch else str | None, _typer_option(spec)
            ],
        )
        for spec in specs
    ]
    if argument is not None:
        name, annotation = argument
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.insert(0, inspect.Parameter(name, kind, default=None, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.__doc__ = run.__doc__
    return command


def parse_options(
    model: type[ModelT], specs: tuple[OptionSpec, ...], given: Mapping[str, Any]
) -> ModelT:
    """Creates an instance of a pydantic model from the values on the command line.

    Args:
        model: the class that `specs` describe.
        specs: the options.
        given: text (or a bool) by field name.

    Raises:
        typer.BadParameter: with one line for each bad value, which names the flag.
    """
    lists = {spec.name for spec in specs if is_list(spec.annotation)}
    values = {
        name: split_list(value) if name in lists and isinstance(value, str) else value
        for name, value in given.items()
    }
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise typer.BadParameter(
            "\n".join(
                _describe_problem(
                    item["loc"], item["msg"].removeprefix("Value error, "), specs, given
                )
                for item in error.errors()
            )
        ) from None


def _describe_problem(
    place: tuple[int | str, ...],
    problem: str,
    specs: tuple[OptionSpec, ...],
    given: Mapping[str, Any],
) -> str:
    """Returns a line about a bad value, or about options that do not fit together.

    Args:
        place: begins with the name of the field; empty if the problem is of several fields.
        problem: of several fields, it has their names.
        specs: the options.
        given: text (or a bool) by field name.
    """
    by_name = {spec.name: spec for spec in specs}
    if not place:
        return re.sub(
            r"\w+", lambda m: by_name[m[0]].error_name if m[0] in by_name else m[0], problem
        )
    field = str(place[0])
    value = f"; got {given[field]!r}" if field in given else ""
    return f"{by_name[field].error_name}: {problem}{value}"


def help_text(command: Callable[..., Any]) -> str:
    """Returns a docstring with each paragraph on one line, as typer wraps lines itself."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def split_list(text: str) -> tuple[str, ...]:
    """Splits a comma-separated value; strips spaces and drops empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_size(text: str, max_side: int) -> tuple[int, int]:
    """(H, W) of `HxW`, the value of `--size`.

    Raises:
        BadParameter: for another text, or a side below 1 or above `max_side`.
    """
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    height, width = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= height <= max_side and 1 <= width <= max_side):
        raise typer.BadParameter(
            f"--size: {text!r} is not HEIGHTxWIDTH in pixels, each 1 to {max_side}"
        )
    return height, width


def is_list(annotation: Any) -> bool:
    """Whether the type is a list or tuple, written as comma-separated values."""
    return any(
        get_origin(part) in (tuple, list) or part in (tuple, list)
        for part in _union_members(annotation)
    )


def describe_type(annotation: Any) -> str:
    """Returns the type of a value as --help shows it: INTEGER, PATH, a|b|c, ..."""
    names = []
    for part in _union_members(annotation):
        if part is type(None):
            continue
        if get_origin(part) is Literal:
            names.append("|".join(str(choice) for choice in get_args(part)))
        elif get_origin(part) in (tuple, list):
            names.append(describe_type(get_args(part)[0]) + ",...")
        else:
            names.append(_METAVARS.get(part, "TEXT"))
    return "|".join(dict.fromkeys(names))


def describe_default(value: Any) -> str:
    """Returns a default as a user would type it; empty if there is none."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ",".join(str(part) for part in value)
    return "" if value in _NO_DEFAULT_SHOWN else str(value)


def _union_members(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type itself, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _union_members(part))
    return (annotation,)


def _typer_option(spec: OptionSpec) -> Any:
    flags = f"{spec.flag}/--no-{spec.flag[2:]}" if spec.is_switch else spec.flag
    return documented_option(
        flags,
        *spec.short_flags,
        help=spec.help,
        env_var=spec.env_var,
        default=describe_default(spec.default),
        metavar=None if spec.is_switch else describe_type(spec.annotation),
        panel=spec.panel,
        click_reads_env=spec.click_reads_env,
        hidden=spec.hidden,
    )


def overwrite_option(env_var: str) -> Any:
    """Returns the option --overwrite of a command.

    Args:
        env_var: its environment variable.
    """
    return documented_option(
        "--overwrite",
        env_var=env_var,
        help="replace output files that exist; otherwise the command refuses to",
    )
