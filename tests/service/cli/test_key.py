from __future__ import annotations

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
