"""The table of extensions in CONTRIBUTING.md is true: an example of each kind works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.extensions import model, service
from tests.docs.extensions.checkout import ExtensionCheckout, documented_files
from tests.support.repository import ROOT

EXAMPLES = service.EXAMPLES | model.EXAMPLES
_FAST = {"output format", "setting"}  # one that starts a service, and one that does not


def test_every_extension_has_an_example() -> None:
    assert EXAMPLES.keys() == documented_files().keys()


@pytest.mark.parametrize("kind", documented_files())
def test_documented_files_exist(kind: str) -> None:
    files, tests = documented_files()[kind]
    for path in (*files, *tests):
        existing = path.partition("NAME")[0].rpartition("/")[0] if "NAME" in path else path
        assert (ROOT / existing).exists(), path


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in _FAST else [pytest.mark.slow]) for kind in EXAMPLES],
)
def test_extension_takes_the_documented_files(kind: str, tmp_path: Path) -> None:
    checkout = ExtensionCheckout.create(tmp_path)
    EXAMPLES[kind](checkout)
    assert checkout.changed == documented_files()[kind][0]
