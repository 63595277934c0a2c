from __future__ import annotations

import hmac
from pathlib import Path
from types import SimpleNamespace

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


def test_only_the_hash_of_a_key_is_stored(file: Path) -> None:
    key = new_key()
    ring = _ring(file, "# comment", "", key_line("shop", [Scope.DETECT], key))
    assert key not in file.read_text()
    assert ring.check(key, Scope.DETECT).name == "shop"


def test_generated_keys_are_unique() -> None:
    assert len({new_key() for _ in range(100)}) == 100


@pytest.mark.parametrize("presented", [None, "", "ldk_", "wrong", "\udcff", "ldk_" + "a" * 43])
def test_a_missing_or_wrong_key_is_refused(file: Path, presented: str | None) -> None:
    ring = _ring(file, key_line("shop", [Scope.DETECT], new_key()))
    with pytest.raises(Unauthenticated):
        ring.check(presented, Scope.DETECT)


def test_a_key_allows_its_scopes_and_admin_allows_all(file: Path) -> None:
    keys = {scope: new_key() for scope in Scope}
    ring = _ring(file, *(key_line(scope.value, [scope], key) for scope, key in keys.items()))
    with pytest.raises(Forbidden, match="'metrics' lacks the scope 'detect'"):
        ring.check(keys[Scope.METRICS], Scope.DETECT)
    with pytest.raises(Forbidden):
        ring.check(keys[Scope.DETECT], Scope.ADMIN)
    for scope in Scope:
        assert ring.check(keys[Scope.ADMIN], scope).name == "admin"
        assert ring.check(keys[scope], scope).name == scope.value


def test_a_reload_adds_new_keys_and_removes_old_ones(file: Path) -> None:
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
        ("", "has no key"),
        ("# only a comment", "has no key"),
        ("shop detect", "line 1: expected .* got 2 fields"),
        (f"sh/op detect {HASH}", "invalid name"),
        (f"shop detect,fly {HASH}", "known are detect, metrics, admin"),
        ("shop detect md5:00", "must be sha256:"),
        ("shop detect sha256:00", "64 hex digits"),
        (f"shop detect {HASH}\nshop admin {HASH}", "line 2: duplicate name 'shop'"),
    ],
)
def test_the_error_of_a_bad_key_file_names_the_line(file: Path, line: str, words: str) -> None:
    with pytest.raises(KeyFileError, match=words) as error:
        _ring(file, line)
    assert str(file) in str(error.value)


def test_the_error_of_a_missing_key_file_names_it(file: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        KeyRing(file)


def test_a_key_with_an_invalid_name_is_refused() -> None:
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
def test_presented_key_reads_both_headers(headers: dict[str, str], key: str | None) -> None:
    assert presented_key(headers.get) == key


@pytest.mark.parametrize("presented", [0, 1, 2, None])
def test_a_key_is_compared_with_all_keys_in_constant_time(
    file: Path, monkeypatch: pytest.MonkeyPatch, presented: int | None
) -> None:
    keys = [new_key() for _ in range(3)]
    ring = _ring(file, *(key_line(f"k{n}", [Scope.DETECT], key) for n, key in enumerate(keys)))
    compared: list[bytes] = []

    def compare(mine: bytes, theirs: bytes) -> bool:
        compared.append(mine)
        return hmac.compare_digest(mine, theirs)

    monkeypatch.setattr("service.access.api_keys.hmac", SimpleNamespace(compare_digest=compare))
    if presented is None:
        with pytest.raises(Unauthenticated):
            ring.check(new_key(), Scope.DETECT)
    else:
        assert ring.check(keys[presented], Scope.DETECT).name == f"k{presented}"
    assert compared == [key.digest for key in ring.keys]
