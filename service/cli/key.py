"""`lite-detr key`: generates an API key and its line for the key file, with the hash of the key."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.cli.failure import CommandFailed

_PRIVATE = 0o600  # key names and scopes are private, although the hashes are not secret


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("key")(_key)


def _key(
    name: Annotated[str, typer.Argument(help="name of the key, shown in logs")],
    scopes: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="what the key allows; repeat the flag for several scopes"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="key file to append to; unset: the line is printed"),
    ] = None,
) -> None:
    """Generate an API key. It is printed once; the key file stores only its hash.

    Use the file: lite-detr serve --api-keys-file FILE (SIGHUP reloads it).
    """
    key = new_key()
    try:
        line = key_line(name, scopes or [Scope.DETECT], key)
    except ValueError as error:
        raise CommandFailed(str(error)) from None
    if file is None:
        print(f"Line for the key file:\n{line}\nThe key (shown only once):", file=sys.stderr)
    else:
        _append(file, name, line)
        print(f"Added {name} to {file}. The key (shown only once):", file=sys.stderr)
    print(key)


def _append(file: Path, name: str, line: str) -> None:
    """Appends a line; the file is replaced atomically.

    Raises:
        CommandFailed: if the name already exists, or the file is not a key file.
    """
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if before.strip():
            if any(key.name == name for key in KeyRing(file).keys):
                raise CommandFailed(f"{file} already has a key named {name!r}")
            before = before if before.endswith("\n") else before + "\n"
        descriptor = os.open(
            part := f"{file}.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE
        )
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{before}{line}\n")
        os.replace(part, file)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CommandFailed(f"{file}: {error}") from error
