"""`lite-detr key`: generates an API key and its line for the key file, with the hash of the key."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from model.data.input_files import check_regular_file, read_text_file
from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.cli.failure import CommandFailed
from service.cli.options import documented_option


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("key")(_key)


def _key(
    name: Annotated[str, typer.Argument(help="name of the key, shown in logs")],
    scopes: Annotated[
        list[Scope] | None,
        documented_option(
            "--scope",
            env_var="LITE_DETR_KEY_SCOPE",
            metavar="|".join(Scope),
            default=Scope.DETECT.value,
            help="what the key allows; repeat the flag for several scopes",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        documented_option(
            "--file",
            env_var="LITE_DETR_KEY_FILE",
            metavar="PATH",
            help="key file to append to; unset: the line is printed",
        ),
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

    Other processes that append to it at the same time wait.

    Raises:
        CommandFailed: if the name already exists, or the file is not a key file.
    """
    try:
        target = file.resolve()  # of a link, the file is replaced, not the link
        if target.exists():
            check_regular_file(target)
        with _locked(target):
            before = read_text_file(target)
            if before.strip():
                if any(key.name == name for key in KeyRing(target).keys):
                    raise CommandFailed(f"{file} already has a key named {name!r}")
                before = before if before.endswith("\n") else before + "\n"
            _replace(target, f"{before}{line}\n")
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror or error}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise CommandFailed(f"{file}: {error}") from error


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds the lock of a file, which is created if it does not exist."""
    descriptor = _lock(file)
    while not _is_open_file(file, descriptor):  # replaced while this process waited
        os.close(descriptor)
        descriptor = _lock(file)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(file: Path) -> int:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)  # NFS locks need write access
    except PermissionError:
        descriptor = os.open(file, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _is_open_file(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _replace(file: Path, text: str) -> None:
    """Replaces the contents of a file atomically.

    If this user may not write to the folder, or may not give the new file the owner of the old
    one, the old one is written in place: a service that runs as that owner must be able to read it.
    """
    try:
        _write_and_rename(file, text, file.stat())
    except PermissionError:
        file.write_text(text, encoding="utf-8")


def _write_and_rename(file: Path, text: str, old: os.stat_result) -> None:
    descriptor, part = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchown(stream.fileno(), old.st_uid, old.st_gid)
            os.fchmod(stream.fileno(), stat.S_IMODE(old.st_mode))
        os.replace(part, file)
    except BaseException:
        os.unlink(part)
        raise
