"""Command-line options generated from the fields of an options class.

The options of `serve` come from `service.settings.Settings`, those of `train` and `eval` from
their frozen dataclasses: name, type, default and help are those of the field. pydantic converts the
text from the command line to the field's type; an error is one line that names the flag and its
environment variable.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import TypeAdapter, ValidationError
from pydantic_settings import BaseSettings
from rich.markup import escape

from service.cli.comments import FieldComment, field_comments

RecordT = TypeVar("RecordT")

_NO_DEFAULT_SHOWN = (None, "", ())
_NO_COMMENT = FieldComment("", None)
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


def dataclass_options(
    record: type[Any], env_prefix: str, *, skip: tuple[str, ...] = ()
) -> tuple[OptionSpec, ...]:
    """Returns the options for the fields of a frozen dataclass.

    The help text is the comment behind the field; without a comment, the name of the field.
    """
    hints = get_type_hints(record)
    comments = field_comments(record)
    return tuple(
        OptionSpec(
            name=field.name,
            annotation=hints[field.name],
            default=field.default,
            help=comments.get(field.name, _NO_COMMENT).text or field.name.replace("_", " "),
            env_var=(env_prefix + field.name).upper(),
            panel=comments.get(field.name, _NO_COMMENT).heading,
        )
        for field in dataclasses.fields(record)
        if field.name not in skip
    )


def settings_options(
    settings: type[BaseSettings], short_flags: Mapping[str, tuple[str, ...]]
) -> tuple[OptionSpec, ...]:
    """Returns the options for the fields of a settings class, which reads the environment itself.

    Args:
        settings: the class; the help text is the description of the field.
        short_flags: further names of a flag, by field name.
    """
    prefix = settings.model_config.get("env_prefix", "")
    comments = field_comments(settings)
    return tuple(
        OptionSpec(
            name=name,
            annotation=field.annotation,
            default=field.get_default(call_default_factory=True),
            help=field.description or "",
            env_var=(prefix + name).upper(),
            panel=comments.get(name, _NO_COMMENT).heading,
            click_reads_env=False,
            short_flags=short_flags.get(name, ()),
        )
        for name, field in settings.model_fields.items()
    )


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
    run: Callable[[dict[str, Any]], None], specs: tuple[OptionSpec, ...]
) -> Callable[..., None]:
    """Returns a function that typer turns into a command with these options.

    Args:
        run: called with the given values by field name: text, or a bool for a switch.
        specs: the options.
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
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.__doc__ = run.__doc__
    return command


def parse_values(specs: tuple[OptionSpec, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the given values to the types of their fields.

    Raises:
        typer.BadParameter: if a value does not fit the type of its field.
    """
    by_name = {spec.name: spec for spec in specs}
    return {name: _parse_value(by_name[name], value) for name, value in given.items()}


def record_of(
    record: type[RecordT], specs: tuple[OptionSpec, ...], values: Mapping[str, Any]
) -> RecordT:
    """Creates an instance of the options class.

    Raises:
        typer.BadParameter: if the class rejects the values; the message names the flags.
    """
    try:
        return record(**values)
    except ValueError as error:
        message = str(error)
        for spec in specs:
            message = message.replace(f"{record.__name__}.{spec.name}=", f"{spec.error_name}: ")
        raise typer.BadParameter(message) from None


def help_text(command: Callable[..., Any]) -> str:
    """Returns a docstring with each paragraph on one line, as typer wraps lines itself."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def split_list(text: str) -> tuple[str, ...]:
    """Splits a comma-separated value; strips spaces and drops empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


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
    )


def _parse_value(spec: OptionSpec, value: Any) -> Any:
    parts = split_list(value) if isinstance(value, str) and is_list(spec.annotation) else value
    try:
        return TypeAdapter(spec.annotation).validate_python(parts)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise typer.BadParameter(f"{spec.error_name}: {problem}; got {value!r}") from None
