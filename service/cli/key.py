"""`lite-detr key`: makes an API key and the line of the key file that knows only its hash."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.cli.failure import CommandFailed

_PRIVATE = 0o600  # hashes of strong keys betray nothing, but names and scopes are nobody's business


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("key")(_key)


def _key(
    name: Annotated[str, typer.Argument(help="whose key it is; shown in logs")],
    scopes: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="what it opens; give it several times for several"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="key file to add the line to; without it the line is shown"),
    ] = None,
) -> None:
    """Make an API key. It is printed once and kept nowhere: the key file holds its hash.

    Serve with it: lite-detr serve --api-keys-file FILE (SIGHUP reads the file again).
    """
    key = new_key()
    try:
        line = key_line(name, scopes or [Scope.DETECT], key)
    except ValueError as error:
        raise CommandFailed(str(error)) from None
    if file is None:
        print(f"Line for the key file:\n{line}\nThe key, for its owner alone:", file=sys.stderr)
    else:
        _append(file, name, line)
        print(f"Added {name} to {file}. The key, for its owner alone:", file=sys.stderr)
    print(key)


def _append(file: Path, name: str, line: str) -> None:
    """Adds a line, to a file that is whole before and after.

    Raises:
        CommandFailed: where the name is there already, or the file is none of ours.
    """
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if before.strip():
            if any(key.name == name for key in KeyRing(file).keys):
                raise CommandFailed(f"{file} holds a key named {name!r} already")
            before = before if before.endswith("\n") else before + "\n"
        descriptor = os.open(
            part := f"{file}.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE
        )
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{before}{line}\n")
        os.replace(part, file)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CommandFailed(f"{file}: {error}") from error
