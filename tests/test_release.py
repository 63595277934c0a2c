"""A release: one version, a complete wheel, and a source archive that builds the same wheel."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.support.built_archives import (
    build,
    contents_of_wheel,
    copy_of_the_project,
    names_in_sdist,
)
from tests.support.repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Files in the packages that only the client's own distribution contains.
NOT_SHIPPED = {"lite_detr_client/pyproject.toml", "lite_detr_client/README.md"}
GENERATOR = "model/training/codes/"  # of training images: in the source archive only


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Source archive, wheel built from it, wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("release")
    project = copy_of_the_project(folder / "project")
    for output in ("through sdist", "direct"):
        (folder / output).mkdir()
    sdist, wheel = sorted(build(project, folder / "through sdist"), key=lambda path: path.suffix)
    [direct] = build(project, folder / "direct", "--wheel")
    return sdist, wheel, direct


def shipped_files() -> set[str]:
    """All files of the packages except build products and caches."""
    packages = ("lite_detr_client", "model", "service")
    files = {path for name in packages for path in (ROOT / name).rglob("*") if path.is_file()}
    names = {path.relative_to(ROOT).as_posix() for path in files}
    leavings = re.compile(r"__pycache__|\.egg-info|\.so$|\.part$")
    shipped = {name for name in names if not leavings.search(name)} - NOT_SHIPPED
    return {name for name in shipped if not name.startswith(GENERATOR)}


@pytest.mark.slow
def test_wheel_carries_every_file_of_the_packages(archives: tuple[Path, Path, Path]) -> None:
    inside = contents_of_wheel(archives[1]).keys()
    assert not shipped_files() - inside
    for needed in (
        "model/weights/default.safetensors",
        "model/ops/csrc/deform_attn.cpp",
        "service/rest/static/index.html",
        "service/rpc/pb/detection_pb2.pyi",
        "service/py.typed",
        "model/py.typed",
        "lite_detr_client/py.typed",
    ):
        assert needed in inside


@pytest.mark.slow
def test_wheel_carries_the_protocol_for_other_languages(archives: tuple[Path, Path, Path]) -> None:
    inside = contents_of_wheel(archives[1]).keys()
    proto = "share/lite-detr/proto/litedetr/v1/detection.proto"
    assert [name for name in inside if name.endswith(f".data/data/{proto}")]


@pytest.mark.slow
def test_wheel_carries_nothing_else(archives: tuple[Path, Path, Path]) -> None:
    inside = contents_of_wheel(archives[1]).keys()
    extra = {name for name in inside if ".dist-info/" not in name and ".data/" not in name}
    assert extra == shipped_files()


def test_generator_of_training_images_is_in_the_source_archive_only(
    archives: tuple[Path, Path, Path],
) -> None:
    generator = {f"{GENERATOR}{path.name}" for path in (ROOT / GENERATOR).glob("*.py")}
    assert len(generator) > 10
    assert generator <= names_in_sdist(archives[0])
    for wheel in archives[1:]:
        assert not [name for name in contents_of_wheel(wheel) if name.startswith(GENERATOR)]


def test_source_archive_builds_the_same_wheel(archives: tuple[Path, Path, Path]) -> None:
    assert contents_of_wheel(archives[1]) == contents_of_wheel(archives[2])


def test_source_archive_can_be_read_and_pinned(archives: tuple[Path, Path, Path]) -> None:
    inside = names_in_sdist(archives[0])
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "README.md", "LICENSE"} <= inside
    assert {"requirements/lock.txt", "docs/api.md", "proto/generate.sh"} <= inside


def test_archives_are_named_by_the_version(archives: tuple[Path, Path, Path]) -> None:
    for path in archives:
        assert path.name.startswith(f"lite_detr_service-{PROJECT['version']}")


def test_change_log_begins_with_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\S+)", text, re.MULTILINE)
    assert released[0] == "Unreleased"
    assert released[1] == PROJECT["version"]


def test_client_is_released_with_the_service() -> None:
    text = (ROOT / "lite_detr_client" / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["version"] == PROJECT["version"]


def test_version_is_written_nowhere_else() -> None:
    number = re.compile(rf"[\"'=v ]{re.escape(PROJECT['version'])}[\"' \n]")
    for folder in ("model", "service", "docker"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yml", "") and path.is_file():
                assert not number.search(path.read_text(encoding="utf-8")), path
