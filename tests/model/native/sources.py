from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from model.native.library import RESIZE, Sources


def changed_sources(folder: Path) -> Sources:
    """Those of the resize, with a file more."""
    copy = Path(shutil.copytree(RESIZE.directory, folder / "csrc"))
    (copy / "more.h").write_text("// changed")
    return replace(RESIZE, directory=copy)
