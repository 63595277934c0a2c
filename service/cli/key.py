"""`lite-detr key`: generates an API key and its line for the key file, with the hash of the key."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.cli.failure import CommandFailed


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

    Use the file: lite-detr serve --api-keys-file FILE (changes take effect within seconds).
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
    """Appends a line; the file is replaced atomically, and keeps its mode and owner.

    Raises:
        CommandFailed: if the name already exists, or the file is not a key file.
    """
    try:
        target = file.resolve()  # of a link, the file is replaced, not the link
        before = target.read_text(encoding="utf-8") if target.exists() else ""
        if before.strip():
            if any(key.name == name for key in KeyRing(target).keys):
                raise CommandFailed(f"{file} already has a key named {name!r}")
            before = before if before.endswith("\n") else before + "\n"
        _replace(target, f"{before}{line}\n")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CommandFailed(f"{file}: {error}") from error


def _replace(file: Path, text: str) -> None:
    """Replaces the contents of a file atomically.

    If this user may not write to the folder, or may not give the new file the owner of the old
    one, the old one is written in place: a service that runs as that owner must be able to read it.
    """
    old = file.stat() if file.exists() else None
    try:
        _write_and_rename(file, text, old)
    except PermissionError:
        if old is None:
            raise
        file.write_text(text, encoding="utf-8")


def _write_and_rename(file: Path, text: str, old: os.stat_result | None) -> None:
    descriptor, part = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            if old is not None:
                os.fchown(stream.fileno(), old.st_uid, old.st_gid)
                os.fchmod(stream.fileno(), stat.S_IMODE(old.st_mode))
        os.replace(part, file)
    except BaseException:
        os.unlink(part)
        raise
