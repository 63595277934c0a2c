from __future__ import annotations

from pathlib import Path

import pytest

from service.access.api_keys import (
    Forbidden,
    KeyFileError,
    KeyRing,
    Scope,
    Unauthenticated,
    key_line,
    new_key,
    presented_key,
)

HASH = "sha256:" + "0" * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def _ring(file: Path, *lines: str) -> KeyRing:
    file.write_text("\n".join(lines))
    return KeyRing(file)


def test_a_key_is_known_by_its_hash_alone(file: Path) -> None:
    key = new_key()
    ring = _ring(file, "# comment", "", key_line("shop", [Scope.DETECT], key))
    assert key not in file.read_text()
    assert ring.check(key, Scope.DETECT).name == "shop"


def test_two_keys_are_never_alike() -> None:
    assert len({new_key() for _ in range(100)}) == 100


@pytest.mark.parametrize("presented", [None, "", "ldk_", "wrong", "\udcff", "ldk_" + "a" * 43])
def test_no_key_and_a_wrong_key_are_refused(file: Path, presented: str | None) -> None:
    ring = _ring(file, key_line("shop", [Scope.DETECT], new_key()))
    with pytest.raises(Unauthenticated):
        ring.check(presented, Scope.DETECT)


def test_a_key_opens_its_scopes_and_admin_opens_all(file: Path) -> None:
    keys = {scope: new_key() for scope in Scope}
    ring = _ring(file, *(key_line(scope.value, [scope], key) for scope, key in keys.items()))
    with pytest.raises(Forbidden, match="'metrics' lacks the scope 'detect'"):
        ring.check(keys[Scope.METRICS], Scope.DETECT)
    with pytest.raises(Forbidden):
        ring.check(keys[Scope.DETECT], Scope.ADMIN)
    for scope in Scope:
        assert ring.check(keys[Scope.ADMIN], scope).name == "admin"
        assert ring.check(keys[scope], scope).name == scope.value


def test_a_reload_takes_new_keys_and_drops_old_ones(file: Path) -> None:
    old, new = new_key(), new_key()
    ring = _ring(file, key_line("a", [Scope.DETECT], old))
    file.write_text(key_line("b", [Scope.DETECT], new))
    assert ring.reload() == 1
    assert ring.check(new, Scope.DETECT).name == "b"
    with pytest.raises(Unauthenticated):
        ring.check(old, Scope.DETECT)


def test_a_reload_of_a_bad_file_keeps_the_keys(file: Path) -> None:
    key = new_key()
    ring = _ring(file, key_line("a", [Scope.DETECT], key))
    file.write_text("nonsense")
    with pytest.raises(KeyFileError):
        ring.reload()
    assert ring.check(key, Scope.DETECT).name == "a"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "holds no key"),
        ("# only a comment", "holds no key"),
        ("shop detect", "line 1: has 2 fields"),
        (f"sh/op detect {HASH}", "no name of a key"),
        (f"shop detect,fly {HASH}", "known are detect, metrics, admin"),
        ("shop detect md5:00", "no sha256:"),
        ("shop detect sha256:00", "64 hex digits"),
        (f"shop detect {HASH}\nshop admin {HASH}", "line 2: 'shop' is there twice"),
    ],
)
def test_a_bad_key_file_is_told_with_its_line(file: Path, line: str, words: str) -> None:
    with pytest.raises(KeyFileError, match=words) as error:
        _ring(file, line)
    assert str(file) in str(error.value)


def test_a_key_file_that_is_not_there_is_told(file: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        KeyRing(file)


def test_a_bad_name_makes_no_line() -> None:
    with pytest.raises(ValueError, match="'a b'"):
        key_line("a b", [Scope.DETECT], new_key())


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"x-api-key": "abc"}, "abc"),
        ({"authorization": "Basic abc"}, None),
        ({"authorization": "Bearer ", "x-api-key": "abc"}, "abc"),
        ({"authorization": "Bearer abc", "x-api-key": "other"}, "abc"),
    ],
)
def test_where_a_key_is_looked_for(headers: dict[str, str], key: str | None) -> None:
    assert presented_key(headers.get) == key
