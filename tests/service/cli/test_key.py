from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service.access.api_keys import KeyRing, Scope
from service.cli import main


def test_generated_key_works_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    assert main(["key", "shop", "--file", str(file)]) == 0
    shop = capsys.readouterr().out.strip()
    assert main(["key", "prometheus", "--scope", "metrics", "--file", str(file)]) == 0
    prometheus = capsys.readouterr().out.strip()
    ring = KeyRing(file)
    assert ring.check(shop, Scope.DETECT).name == "shop"
    assert ring.check(prometheus, Scope.METRICS).name == "prometheus"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_without_a_file_the_line_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "ops", "--scope", "admin", "--scope", "detect"]) == 0
    shown = capsys.readouterr()
    [line] = [line for line in shown.err.splitlines() if line.startswith("ops ")]
    file = tmp_path / "keys"
    file.write_text(line)
    assert KeyRing(file).check(shown.out.strip(), Scope.ADMIN).name == "ops"


@pytest.mark.parametrize(
    ("name", "before", "words"),
    [
        ("a b", "", "a b"),
        ("shop", "shop detect sha256:" + "0" * 64, "already"),
        ("new", "not a key file\n", "line 1"),
    ],
)
def test_rejected_key_is_reported_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, before: str, words: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(before)
    assert main(["key", name, "--file", str(file)]) == 1
    assert words in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_the_key_file_keeps_its_mode_and_owner(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys"
    assert main(["key", "shop", "--file", str(file)]) == 0
    file.chmod(mode)
    owner = (10001, 10002) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(file, *owner)
    assert main(["key", "museum", "--file", str(file)]) == 0
    after = file.stat()
    assert (after.st_mode & 0o777, (after.st_uid, after.st_gid)) == (mode, owner)
    assert [key.name for key in KeyRing(file).keys] == ["shop", "museum"]
    assert list(tmp_path.iterdir()) == [file]


def test_the_key_file_of_another_owner_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_permitted(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    file = tmp_path / "keys"
    assert main(["key", "shop", "--file", str(file)]) == 0
    before = file.stat().st_ino
    monkeypatch.setattr(os, "fchown", not_permitted)  # as for a user who is not its owner
    assert main(["key", "museum", "--file", str(file)]) == 0
    assert file.stat().st_ino == before
    assert [key.name for key in KeyRing(file).keys] == ["shop", "museum"]
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_to_a_key_file_stays_a_link(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "keys"
    assert main(["key", "shop", "--file", str(file)]) == 0
    link.symlink_to(file)
    assert main(["key", "museum", "--file", str(link)]) == 0
    assert link.is_symlink()
    assert len(KeyRing(file).keys) == 2


def test_keys_that_are_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    code = f"""
import sys
from service.cli import main
sys.stdin.readline()
statuses = [main(["key", f"{{sys.argv[1]}}-{{n}}", "--file", {str(file)!r}]) for n in range(25)]
sys.exit(any(statuses))
"""
    names = ("one", "two", "three")
    writers = [
        subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in names
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("begin\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    expected = {f"{name}-{n}" for name in names for n in range(25)}
    assert {key.name for key in KeyRing(file).keys} == expected
    assert list(tmp_path.iterdir()) == [file]


def test_a_key_is_added_to_the_file_that_replaced_the_one_waited_for(tmp_path: Path) -> None:
    file, other = tmp_path / "keys", tmp_path / "other"
    assert main(["key", "old", "--file", str(file)]) == 0
    assert main(["key", "new", "--file", str(other)]) == 0
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = threading.Thread(target=main, args=(["key", "mine", "--file", str(file)],))
        writer.start()
        time.sleep(0.2)  # it waits for the lock, or will find it released
        other.replace(file)
    writer.join(60)
    assert [key.name for key in KeyRing(file).keys] == ["new", "mine"]


def test_a_key_file_that_is_a_pipe_is_refused_without_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "keys")
    assert main(["key", "shop", "--file", str(tmp_path / "keys")]) == 1
    assert "not a regular file but a named pipe" in capsys.readouterr().err
