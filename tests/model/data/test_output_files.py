from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from model.data.errors import OutputError
from model.data.output_files import (
    check_output_file,
    check_suffix,
    is_stream,
    replacing,
    write_output,
    write_output_whole,
)

FULL = Path("/dev/full")


def test_a_dash_is_no_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="/dev/stdout"):
        check_output_file(Path("-"), overwrite=True)
    check_output_file(tmp_path / "-", overwrite=False)


def test_a_read_only_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match="is read-only for this user"):
        check_output_file(tmp_path / "a.png", overwrite=True)
    check_output_file(Path("/dev/null"), overwrite=False)


@pytest.mark.parametrize("name", ["/dev/full", "/dev/stdout", "pipe"])
def test_a_stream_is_refused_where_a_regular_file_is_needed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    with pytest.raises(OutputError, match=f"{name} is not a regular file"):
        check_output_file(path, overwrite=True, regular=True)
    check_output_file(path, overwrite=True)


@pytest.mark.parametrize("name", ["a.jpg", "a.b.JPG"])
def test_the_suffix_of_another_format_is_refused(name: str) -> None:
    better = Path(name).with_suffix(".png")
    with pytest.raises(OutputError, match=f"not the name of a .png file: name it {better}"):
        check_suffix(Path(name), ".png", {".jpg"})


@pytest.mark.parametrize("name", ["a.png", "a", ".jpg", "a.jpg.part", "/dev/null"])
def test_other_names_are_accepted(name: str) -> None:
    check_suffix(Path(name), ".png", {".jpg"})


def test_a_device_without_space_is_named() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_output_whole(FULL, b"a" * 10_000)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_output(FULL, b"a" * 10_000, overwrite=False)


def test_an_open_file_is_written_where_it_is(tmp_path: Path) -> None:
    """As /dev/stdout is with `> file`."""
    with (tmp_path / "a").open("wb") as file:
        file.write(b"before ")
        file.flush()
        path = Path(f"/dev/fd/{file.fileno()}")
        check_output_file(path, overwrite=False)
        write_output_whole(path, b"figure ")
        write_output(path, b"results", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"before figure results"
    assert is_stream(Path("/dev/stdout"))
    assert not is_stream(tmp_path / "a")


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_output_whole(pipe, b"figure")
        assert os.read(reader, 10) == b"figure"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_an_existing_file_is_kept_without_overwrite(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"before")
    with pytest.raises(OutputError, match="--overwrite"):
        write_output(file, b"after", overwrite=False)
    assert file.read_bytes() == b"before"


def test_a_file_whose_check_fails_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def refuse(written: Path) -> None:
        assert written.read_bytes() == b"new"
        raise ValueError

    with pytest.raises(ValueError), replacing(path, refuse) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_path_that_cannot_be_looked_up_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("n" * 300)
    for path in (long, long / "a.json"):
        with pytest.raises(OutputError, match="cannot be written: File name too long"):
            check_output_file(path, overwrite=True)
        assert not is_stream(path)

    look_up = os.stat

    def deny(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith("/private"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look_up(path, **options)  # of other threads

    monkeypatch.setattr(os, "stat", deny)
    with pytest.raises(OutputError, match=r"private/a\.json cannot be written: Permission denied"):
        check_output_file(Path("/private/a.json"), overwrite=True)


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_write_that_fails_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "a.jpg"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(OSError, match="No space left on device"):
        write_output(path, b"after", overwrite=True)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


@pytest.mark.parametrize("name", ["n" * 255, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 127])
def test_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    for content in (b"first", b"second"):
        write_output(tmp_path / name, content, overwrite=True)
        assert [file.read_bytes() for file in tmp_path.iterdir()] == [content]


def test_links_and_permissions_are_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "a.json", tmp_path / "link.json"
    target.write_bytes(b"before")
    target.chmod(0o600)
    link.symlink_to(target)
    write_output(link, b"after", overwrite=True)
    assert (link.is_symlink(), target.read_bytes()) == (True, b"after")
    assert target.stat().st_mode & 0o777 == 0o600
