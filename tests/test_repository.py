"""The repository: setup with make, exact versions, license, CI."""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import subprocess
import tomllib
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.repository import ROOT

LOCK = ROOT / "requirements" / "lock.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("service", "model", "lite_detr_client")


def locked() -> dict[str, str]:
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}


def declared() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]
    requirements = [Requirement(text) for text in texts]
    return [wanted for wanted in requirements if not wanted.marker or wanted.marker.evaluate()]


def test_lock_has_only_exact_versions() -> None:
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        pin = r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; python_full_version (<|>=) '3\.\d+')?"
        assert re.fullmatch(rf"#.*|{pin}", line), line
        assert "://" not in line


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_lock_satisfies_the_project(requirement: Requirement) -> None:
    number = locked()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(number), f"{requirement}: locked {number}; run make lock"


def test_torch_is_pinned_exactly() -> None:
    [torch] = [requirement for requirement in declared() if requirement.name == "torch"]
    assert str(torch.specifier) == f"=={locked()['torch']}"
    assert installed_version("torch").split("+")[0] == locked()["torch"]


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_ci_runs_lint_and_tests() -> None:
    ci = ROOT / ".ci" / "run"
    text = ci.read_text(encoding="utf-8")
    assert ci.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in text
    assert "make lint" in text
    assert "make test" in text


def make_dry_run(*arguments: str, home: Path = ROOT, **variables: str) -> str:
    """Returns the commands that make would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(
        ["make", "-n", *arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_make_without_a_target_lists_the_targets() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("serve", "test", "lint", "format", "clean", "help"):
        assert re.search(rf"^  {target} ", done.stdout, re.MULTILINE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that make reads, with nothing installed."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_make_serve_sets_up_first_with_pinned_versions(checkout: Path) -> None:
    plan = make_dry_run("serve", home=checkout)
    assert plan.index("make_venv.sh") < plan.index("pip install") < plan.index("lite-detr serve")
    assert "--require-hashes --no-deps -r requirements/hashes/serve.txt\n" in plan
    assert "-c requirements/lock.txt torch" in plan
    assert "--no-deps --no-build-isolation -e ." in plan
    assert "full.txt" not in plan
    assert "extra-index-url" not in plan


def test_the_index_for_torch_is_used_for_torch_only(checkout: Path) -> None:
    plan = make_dry_run("serve", "TORCH_INDEX=a-url", home=checkout)
    [line] = [line for line in plan.splitlines() if "extra-index-url" in line]
    assert line.endswith('--extra-index-url "a-url" -c requirements/lock.txt torch')


def test_torch_can_be_checked_by_hash(checkout: Path) -> None:
    plan = make_dry_run("serve", "TORCH_HASHES=1", home=checkout)
    installs = [line for line in plan.splitlines() if "pip install" in line]
    assert "--require-hashes --no-deps -r requirements/hashes/torch.txt" in installs[1]
    assert all("--no-deps" in line for line in installs)


def test_make_test_installs_everything_and_runs_pytest(checkout: Path) -> None:
    plan = make_dry_run("test", home=checkout)
    files = " ".join(
        f"-r requirements/hashes/{name}.txt" for name in ("serve", "otel", "heic", "full")
    )
    assert f"--require-hashes --no-deps {files}\n" in plan
    assert plan.index("pip install") < plan.index("-m pytest")


def test_second_make_serve_installs_nothing(checkout: Path) -> None:
    stamps = checkout / ".venv"
    stamps.mkdir()
    for name in (".made", ".runtime-installed"):
        (stamps / name).touch()
    assert "pip install" not in make_dry_run("serve", home=checkout)


def test_make_serve_turns_variables_into_flags(checkout: Path) -> None:
    plan = make_dry_run(
        "serve", "PORT=9000", "HOST=0.0.0.0", "MODEL=a b.safetensors", home=checkout
    )
    assert '--port "9000"' in plan
    assert '--host "0.0.0.0"' in plan
    assert '--model "a b.safetensors"' in plan


def test_host_variable_of_the_shell_is_ignored(checkout: Path) -> None:
    assert "--host" not in make_dry_run("serve", home=checkout, HOST="my-laptop")


@pytest.mark.parametrize("has_old_python", [True, False])
def test_missing_python_is_reported(has_old_python: bool, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if has_old_python:
        old = tools / "python3"
        old.write_text("#!/bin/sh\nexit 1\n")
        old.chmod(0o755)
    done = subprocess.run(
        [shutil.which("sh") or "sh", str(ROOT / "requirements/make_venv.sh"), str(tmp_path / "v")],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no Python >= 3.11" in done.stderr


def test_readme_names_make_serve_and_make_test() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make serve" in text
    assert "make test" in text


def private_imports(path: Path) -> list[str]:
    """Private names of one module of the project that the module `path` imports or reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[str] = []
    modules: set[str] = set()  # local names that are modules of the project
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.islower()}
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            found += [part for part in parts if is_private(part)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [node.attr] if node.value.id in modules and is_private(node.attr) else []
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_a_private_name_of_another(package: str) -> None:
    paths = [path for path in (ROOT / package).rglob("*.py") if path.parent.name != "pb"]
    found = {str(path.relative_to(ROOT)): private_imports(path) for path in paths}
    assert len(found) > 5
    assert {path: names for path, names in found.items() if names} == {}
