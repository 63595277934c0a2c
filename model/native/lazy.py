"""A compiled library that is loaded, or built, at its first use."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Callable

from model.native.library import BuildError


class LazyLibrary:
    """One library of this process.

    Args:
        load: finds or builds it, and declares its functions.
        without: what happens if that fails; the warning begins with it.
    """

    def __init__(self, load: Callable[[], ctypes.CDLL], without: str) -> None:
        self._load = load
        self._without = without
        self._lock = threading.Lock()
        self.tried = False
        self.library: ctypes.CDLL | None = None

    def available(self) -> bool:
        """Whether it can be used here; the first call loads it and warns if that fails."""
        if not self.tried:
            with self._lock:
                if not self.tried:
                    self._try()
        return self.library is not None

    def _try(self) -> None:
        try:
            self.library = self._load()
        except BuildError as error:
            warnings.warn(f"{self._without}: {error}", RuntimeWarning, stacklevel=5)
        self.tried = True
