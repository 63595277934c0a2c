"""Texts that notice what is done with them."""

from __future__ import annotations

from typing import Any, NoReturn


class NeverSplit(str):
    """Fails the test if it is split."""

    __slots__ = ()

    def split(self, *_arguments: Any, **_options: Any) -> NoReturn:
        """Is not called."""
        raise AssertionError(f"a text of {len(self)} characters is split")
