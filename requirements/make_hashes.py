"""Writes requirements/hashes/ from requirements/lock.txt, for `pip install --require-hashes`.

    python requirements/make_hashes.py UV

    serve.txt   what serving needs, without torch
    otel.txt    what the extra `otel` needs in addition
    heic.txt    what the extra `heic` needs in addition
    full.txt    what the extras `train` and `dev` need in addition
    ray.txt     what the extra `ray` needs in addition to all of these
    torch.txt   torch of the default package index, and the CUDA libraries that it needs

torch has a file of its own because its builds for CPUs, from another index, have other hashes. The
files contain versions and hashes and nothing else: no index, no host, no path.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent
# Only the CUDA builds of torch need these, unless the project requires them itself.
_CUDA = re.compile(r"cuda-.*|nvidia-.*|triton")
_WINDOWS_ONLY = re.compile(r"; (os_name == 'nt'|sys_platform == 'win32'| or )+ \\$")
_HEADER = "# Written by 'make lock'; see requirements/make_hashes.py.\n"

Entries = dict[str, list[str]]  # lines of the file by name of the package


def resolve(uv: str, requirements: Iterable[str]) -> Entries:
    """Returns what these requirements install, in the versions of the lock."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, output = Path(folder) / "wanted.in", Path(folder) / "output.txt"
        wanted.write_text("\n".join(requirements), encoding="utf-8")
        options = "--universal --fork-strategy fewest --python-version 3.11 --generate-hashes"
        quiet = "--quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links"
        argv = [uv, "pip", "compile", *options.split(), *quiet.split()]
        lock = str(FOLDER / "lock.txt")
        subprocess.run([*argv, "-c", lock, "-o", str(output), str(wanted)], check=True)
        return entries(output.read_text(encoding="utf-8"))


def entries(text: str) -> Entries:
    """Splits a file into the entries of its packages; a package may have several, by marker."""
    found: Entries = {}
    for entry in re.split(r"^(?=\w)", text, flags=re.MULTILINE):
        if re.match(r"\w", entry) and not _WINDOWS_ONLY.search(entry.partition("\n")[0]):
            found.setdefault(entry.partition("==")[0], []).append(entry)
    return found


def write(name: str, packages: Entries) -> None:
    """Writes one file, sorted by package."""
    text = "".join(entry for _, each in sorted(packages.items()) for entry in each)
    (FOLDER / "hashes" / name).write_text(_HEADER + text, encoding="utf-8")


def main(uv: str) -> None:
    """Writes all files."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    project = project["project"]
    extras, base = project["optional-dependencies"], project["dependencies"]
    (FOLDER / "hashes").mkdir(exist_ok=True)
    written: set[str] = set()
    cuda: Entries = {}
    files: dict[str, tuple[str, ...]] = {
        "serve": (),
        "otel": ("otel",),
        "heic": ("heic",),
        "full": ("otel", "train", "dev"),
        "ray": ("ray",),  # last: what the others need is in their files
    }
    for name, chosen in files.items():
        wanted = [*base, *(each for extra in chosen for each in extras[extra])]
        complete = resolve(uv, wanted)
        without_torch = resolve(uv, (each for each in wanted if not each.startswith("torch==")))
        of_cuda = {p for p in complete if _CUDA.fullmatch(p) and p not in without_torch}
        if name == "serve":
            cuda = {p: complete[p] for p in {"torch", *of_cuda}}
        skipped = of_cuda | written | {"torch"}
        write(f"{name}.txt", {p: each for p, each in complete.items() if p not in skipped})
        written |= complete.keys() - of_cuda
    write("torch.txt", cuda)


if __name__ == "__main__":
    main(sys.argv[1])
