"""What is in the repository's root, and how large its files are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.repository import ROOT

# docs/architecture.md names the folders. The other files are what tools and people look for in a
# root; anything else belongs into one of the folders.
FOLDERS = {
    *("service", "model", "proto", "docker", "tests"),
    *("benchmarks", "docs", "lite_detr_client", "requirements", ".ci"),
}
FILES = {
    *("README.md", "pyproject.toml", "docker-compose.yml", "Makefile", "MANIFEST.in"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "llms.txt"),
    *(".dockerignore", ".gitignore", ".pre-commit-config.yaml"),
}
# Images, measurements and hashes of packages; the default model has a limit of its own.
DATA_FOLDERS = (
    "benchmarks/results/",
    "docs/images/",
    "docs/samples/",
    "requirements/hashes/",
    "service/rest/static/samples/",
)
MAX_BYTES, MAX_DATA_BYTES = 64_000, 512_000
MODEL, MAX_MODEL_BYTES = "model/weights/default.safetensors", 11_000_000


def git_paths(root: Path = ROOT) -> list[str]:
    """What `git ls-files` lists; skips the test outside a checkout, as in a source archive."""
    git = ["git", "-c", "safe.directory=*", "-C", str(root)]
    try:
        top = _output(*git, "rev-parse", "--show-toplevel").strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    if not top or Path(top).resolve() != root.resolve():
        pytest.skip("this is no git checkout")  # an archive that is unpacked in another one
    return [path for path in _output(*git, "ls-files", "-z").split("\0") if path]


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def unexpected_entries(paths: list[str]) -> list[str]:
    """The entries of the root that are neither in `FOLDERS` nor in `FILES`."""
    entries = {path.partition("/")[0] + "/" * ("/" in path) for path in paths}
    return sorted(entries - {f"{folder}/" for folder in FOLDERS} - FILES)


def too_large(sizes: dict[str, int]) -> dict[str, int]:
    """The files that are larger than their kind may be."""
    return {path: size for path, size in sizes.items() if size > _limit(path)}


def _limit(path: str) -> int:
    if path == MODEL:
        return MAX_MODEL_BYTES
    return MAX_DATA_BYTES if path.startswith(DATA_FOLDERS) else MAX_BYTES


def test_the_root_has_only_documented_entries() -> None:
    tracked = git_paths()
    assert unexpected_entries(tracked) == []
    missing = (FOLDERS | FILES) - {path.partition("/")[0] for path in tracked}
    assert missing == set()


def test_every_folder_of_the_root_is_documented() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [folder for folder in sorted(FOLDERS) if f"\n| `{folder}/` |" not in page] == []


def test_other_entries_are_noticed() -> None:
    stray = ["main.py", "core/a.py", "photos/", "service", "Makefile", "model/a.py", "docs/x/y.md"]
    assert unexpected_entries(stray) == ["core/", "main.py", "photos/", "service"]


def test_large_files_are_only_in_the_folders_of_data() -> None:
    paths = [ROOT / path for path in git_paths()]
    sizes = {
        path.relative_to(ROOT).as_posix(): path.lstat().st_size for path in paths if path.exists()
    }
    assert too_large(sizes) == {}


def test_large_files_elsewhere_are_noticed() -> None:
    sizes = {"docs/images/a.png": 300_000, "tests/a.bin": 300_000, MODEL: 10**7}
    assert too_large(sizes) == {"tests/a.bin": 300_000}
    assert too_large({"model/weights/other.safetensors": 10**7, "docs/samples/a.jpg": 10**6}) == {
        "model/weights/other.safetensors": 10**7,
        "docs/samples/a.jpg": 10**6,
    }


def test_a_source_archive_skips_the_check(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="no git checkout"):
        git_paths(root=tmp_path)
    with pytest.raises(pytest.skip.Exception, match="no git checkout"):
        git_paths(root=ROOT / "tests")
