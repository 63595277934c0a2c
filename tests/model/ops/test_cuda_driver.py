"""The GPU's path on a stand-in for the CUDA driver, with each version of cuda-bindings here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.ops import driver_scenarios
from tests.model.ops.warp_host import HostWarp
from tests.support.repository import ROOT

OTHER_VERSIONS = sorted((ROOT / ".venv-cuda-bindings").glob("*.*"))
WANTED = [
    line.strip()
    for line in (ROOT / "requirements" / "cuda-bindings.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in as `libcuda.so.1`."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler here to compile the stand-in driver")
    folder = tmp_path_factory.mktemp("driver")
    flags = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
    source = Path(__file__).with_name("standin_driver.c")
    command = [compiler, *flags, str(source), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True)
    return folder


def run_scenarios(driver: Path, warp: HostWarp, bindings: Path | None) -> dict[str, str]:
    """What failed in each scenario."""
    paths = [str(ROOT), *([] if bindings is None else [str(bindings)])]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(driver),
        "PYTHONPATH": os.pathsep.join(reversed(paths)),
    }
    command = [sys.executable, "-m", "tests.model.ops.driver_scenarios", str(warp.directory)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["name"]: result["failure"] for result in results}


@pytest.fixture(scope="module")
def failures(driver: Path, warp: HostWarp) -> dict[str, str]:
    pytest.importorskip("cuda.bindings")
    return run_scenarios(driver, warp, None)


@pytest.mark.parametrize("name", driver_scenarios.SCENARIOS)
def test_on_the_stand_in_driver(failures: dict[str, str], name: str) -> None:
    assert failures[name] == ""


@pytest.mark.slow
@pytest.mark.skipif(not OTHER_VERSIONS, reason="no other versions of cuda-bindings are installed")
@pytest.mark.parametrize("version", WANTED)
def test_other_versions_of_the_bindings(driver: Path, warp: HostWarp, version: str) -> None:
    folder = ROOT / ".venv-cuda-bindings" / version
    found = subprocess.run(
        [sys.executable, "-c", "import cuda.bindings; print(cuda.bindings.__version__)"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == version
    failures = run_scenarios(driver, warp, folder)
    assert failures.keys() == driver_scenarios.SCENARIOS.keys()
    assert {name: failure for name, failure in failures.items() if failure} == {}


def test_without_a_driver_the_reference_computes(warp: HostWarp, tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings")
    script = """
import torch, warnings
from model.ops import cuda, cpu
from tests.model.ops import driver_world as scenarios
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda _index: (9, 0)
cuda.machine_code = lambda _variant, _capability: scenarios.CODE
case = scenarios.half()
shapes = [side for shape in case.spatial_shapes for side in shape]
inputs = cpu.Inputs(case.value, case.reference_points, case.sampling_offsets, shapes, case.query)
with scenarios.warned() as caught:
    output = cuda.forward(inputs)
scenarios.assert_right(output, case)
(warning,) = caught
assert "no usable cuInit" in str(warning.message), warning.message
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("LD_LIBRARY_PATH", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
