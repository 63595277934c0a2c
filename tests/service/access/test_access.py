"""Key and certificate files that change while the service runs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from service.access.access import Access
from service.access.api_keys import Scope, Unauthenticated, key_line
from service.access.watched_files import WatchedFiles
from tests.support.certificates import Authority
from tests.support.fake_service import fake_settings


def _key_file(folder: Path, *names: str) -> Path:
    """A key file in which the key of each name is the name itself."""
    file = folder / "keys.txt"
    part = folder / "keys.part"
    part.write_text("".join(key_line(name, [Scope.DETECT], name) + "\n" for name in names))
    os.replace(part, file)
    return file


def _accepts(access: Access, key: str) -> bool:
    assert access.keys is not None
    try:
        return access.keys.check(key, Scope.DETECT).name == key
    except Unauthenticated:
        return False


def _access(keys: Path, authority: Authority | None = None, **settings: object) -> Access:
    if authority is not None:
        pair = authority.issue("server")
        settings |= {
            "tls_certificate_file": pair.certificate,
            "tls_key_file": pair.key,
            "tls_client_ca_file": authority.certificate,
        }
    return Access(fake_settings(api_keys_file=keys, **settings))


async def test_a_changed_key_file_is_read_without_a_signal(tmp_path: Path) -> None:
    access = _access(_key_file(tmp_path, "shop"))
    watching = asyncio.create_task(access.watch(poll_seconds=0.01))
    try:
        _key_file(tmp_path, "museum")
        async with asyncio.timeout(20):
            while not _accepts(access, "museum"):
                await asyncio.sleep(0.01)
        assert not _accepts(access, "shop")  # revoked
    finally:
        watching.cancel()


def test_a_reload_does_not_wait_for_files_that_are_being_read(tmp_path: Path) -> None:
    access = _access(_key_file(tmp_path, "shop"))
    _key_file(tmp_path, "museum")
    with access._lock:  # as while `watch` reads a file on a slow volume
        access.reload_in_thread()
        access.reload_in_thread()
        assert not _accepts(access, "museum")
    while not _accepts(access, "museum"):
        time.sleep(0.001)


def test_a_reload_that_fails_in_its_thread_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    access = _access(_key_file(tmp_path, "shop"))
    done = threading.Event()

    def fail() -> None:
        done.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(access, "_reload_keys", fail)
    access.reload_in_thread()
    assert done.wait(60)
    for thread in threading.enumerate():
        if thread.name == "reload-access":
            thread.join(60)
    assert "a bug" in capsys.readouterr().out


def test_a_changed_file_is_read_once_it_was_the_same_for_two_polls(tmp_path: Path) -> None:
    file = _key_file(tmp_path, "shop", "museum")
    access = _access(file)
    access.reload_changed()
    file.write_text(key_line("shop", [Scope.DETECT], "shop") + "\n")  # half written
    access.reload_changed()
    assert _accepts(access, "museum")
    _key_file(tmp_path, "shop", "museum", "archive")
    access.reload_changed()
    assert not _accepts(access, "archive")
    access.reload_changed()
    assert _accepts(access, "archive")


def test_an_unusable_file_is_reported_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _key_file(tmp_path, "shop")
    access = _access(file)
    file.write_text("nonsense\n")
    for _ in range(5):
        access.reload_changed()
    assert _accepts(access, "shop")
    assert (capsys.readouterr().out + caplog.text).count("not reloaded") == 1


def test_a_link_to_another_file_is_a_change(tmp_path: Path) -> None:
    """Kubernetes replaces a link when a secret changes."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.txt").write_text("same length")
    link = tmp_path / "data"
    link.symlink_to("one")
    watched = WatchedFiles(link / "keys.txt", None)
    assert not watched.changed()
    (tmp_path / "part").symlink_to("two")
    os.replace(tmp_path / "part", link)
    assert [watched.changed(), watched.changed()] == [False, True]


def test_broken_keys_do_not_stop_the_renewal_of_certificates_nor_the_reverse(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    keys = _key_file(tmp_path, "shop")
    access = _access(keys, authority)
    assert access.tls is not None
    before = access.tls.context.current
    keys.write_text("nonsense")
    authority.issue("server")
    access.reload()
    assert access.tls.context.current is not before
    _key_file(tmp_path, "museum")
    authority.certificate.write_text("nonsense")
    access.reload()
    assert _accepts(access, "museum")


async def test_nothing_is_watched_without_keys_and_certificates() -> None:
    access = Access(fake_settings())
    async with asyncio.timeout(20):
        await access.watch()
    assert (access.keys, access.tls, access.tls_context) == (None, None, None)
