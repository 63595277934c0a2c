"""The GPU measurement without a GPU: nothing is lost, and it needs no more than it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import run as run_module
from benchmarks.gpu.original_msda import locations_and_weights
from benchmarks.gpu.run import PARTS, Part, Run
from benchmarks.gpu.variants import used_variants
from benchmarks.kernels import gpu
from benchmarks.serving import service_process
from model.ops import cpu, cuda_ahead, nvrtc
from model.ops.cuda_call import variant_of
from model.ops.workloads import (
    DECODER_QUERIES,
    Workload,
    cast,
    level_sizes,
    official_formula,
    random_inputs,
)
from tests.model.ops.attention_cases import KINDS, Kind, random_case
from tests.support import bare_environment
from tests.support.host_transfers import ForbidHostTransfers
from tests.support.repository import ROOT

WRITE = """
import sys, time
with open(sys.argv[1], "w") as file:
    for number in range(3):
        print('{"kind": "row", "number": %d}' % number, file=file, flush=True)
print("printed", flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""
LIMIT_SECONDS = 600
BARE = ("torch", "numpy", "pillow", "safetensors")


def part(name: str, sleeps: float = 0.0, status: int = 0, seconds: float = 30.0) -> Part:
    return Part(name, seconds, ("-c", WRITE, "RESULTS", str(sleeps), str(status)))


def archived(folder: Path) -> dict[str, str]:
    with tarfile.open(folder / "results.tar.gz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def numbers(text: str) -> list[int]:
    return [json.loads(line)["number"] for line in text.splitlines()]


def test_a_failed_part_does_not_stop_the_others(tmp_path: Path) -> None:
    run = Run(tmp_path, "cpu", 60.0)
    assert run.run([part("one", status=3), part("two")]) == 1
    assert run.failed == ["one"]
    found = archived(tmp_path)
    assert numbers(found["one.jsonl"]) == numbers(found["two.jsonl"]) == [0, 1, 2]
    assert found["two.txt"] == "printed\n"
    assert "one: failed with status 3" in found["parts.txt"]
    assert "two: done in" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_stopped_and_keeps_its_results(tmp_path: Path) -> None:
    run = Run(tmp_path, "cuda", 120.0)
    started = time.monotonic()
    assert run.run([part("slow", sleeps=600, seconds=10.0), part("next")]) == 1
    assert time.monotonic() - started < 100
    found = archived(tmp_path)
    assert numbers(found["slow.jsonl"]) == [0, 1, 2]
    assert "slow: stopped after" in found["parts.txt"]
    assert "next: done in" in found["parts.txt"]


def test_the_end_of_the_output_has_the_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "PARTS", [part("one", status=3)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert run_module.main([str(tmp_path), "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "## Goals" in printed and "| not measured |" in printed
    assert "number 0" not in printed and printed.endswith("failed: one\n")


def test_a_page_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_folder: Path) -> str:
        raise KeyError("kind")

    monkeypatch.setattr(run_module, "report", fail)
    assert Run(tmp_path, "cpu", 60.0).run([part("one")]) == 0
    assert numbers(archived(tmp_path)["one.jsonl"]) == [0, 1, 2]
    assert "not saved" in capsys.readouterr().err


def test_a_long_output_keeps_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_END_BYTES", 10)
    code = "print('first'); print('x' * 1000); print('last')"
    assert Run(tmp_path, "cpu", 60.0).run([Part("loud", 30, ("-c", code))]) == 0
    output = archived(tmp_path)["loud.txt"]
    assert output.startswith("first\n") and output.endswith("last\n")
    assert "992 bytes left out" in output


def test_a_part_has_its_environment(tmp_path: Path) -> None:
    code = "import os; print(os.environ['SOME_SETTING'], os.environ['OMP_WAIT_POLICY'])"
    one = Part("one", 30, ("-c", code), environment=(("SOME_SETTING", "7"),))
    assert Run(tmp_path, "cpu", 60.0).run([one]) == 0
    assert archived(tmp_path)["one.txt"] == "7 passive\n"
    (memcheck,) = [each for each in PARTS if each.tool == "compute-sanitizer"]
    assert dict(memcheck.environment)["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


def test_the_script_passes_its_arguments_on(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu/run.sh"), str(tmp_path), "--parts", "r50", "fuzz"],
        env={**os.environ, "PYTHON": "echo", "DEVICE": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ["-m", "benchmarks.gpu.run", "--device", "cpu", str(tmp_path)]
    assert done.stdout.split() == [*expected, "--parts", "r50", "fuzz"]


def test_no_part_is_started_without_time(tmp_path: Path) -> None:
    run = Run(tmp_path, "cuda", 7.0)
    assert run.run([part("one", seconds=90.0)]) == 0
    assert "one: left out: no time" in archived(tmp_path)["parts.txt"]


def test_parts_without_what_they_need_are_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path, "cpu", 60.0)
    needy = Part("needy", 9, ("-c", "1 / 0"), needs=("no_such_package", "json"))
    tool = Part("tool", 9, ("-c", "1 / 0"), tool="no-such-tool")
    assert run.run([needy, tool, Part("gpu", 9, ("-c", "1 / 0"), only_on_gpu=True)]) == 0
    notes = archived(tmp_path)["parts.txt"]
    assert "needy: left out: no_such_package not installed" in notes
    assert "tool: left out: no no-such-tool here" in notes
    assert "gpu: left out: needs a GPU" in notes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_killed_run_has_saved_what_was_measured(tmp_path: Path, number: int) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from benchmarks.gpu import run
from tests.benchmarks.test_gpu_run import part
run.PARTS, run._SAVE_SECONDS = (part("done"), part("slow", sleeps=600)), 0.2
sys.exit(run.main([{str(tmp_path)!r}, "--device", "cpu"]))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while "slow.jsonl" not in (archived(tmp_path) if _has_archive(tmp_path) else {}):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) != 0
    found = archived(tmp_path)
    assert numbers(found["done.jsonl"]) == [0, 1, 2]
    assert "slow.txt" in found


def _has_archive(folder: Path) -> bool:
    return (folder / "results.tar.gz").exists()


def test_all_parts_fit_into_ten_minutes() -> None:
    assert sum(one.seconds for one in PARTS) + 10 <= LIMIT_SECONDS
    assert [one.name for one in PARTS][:2] == ["attention", "r50"]
    assert len({one.name for one in PARTS}) == len(PARTS)


def test_the_service_finds_packages_in_a_folder_of_wheels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[str] = []

    def start(*arguments: Any) -> None:
        found.append(arguments[2]["PYTHONPATH"])

    monkeypatch.setattr(service_process.Service, "start", start)
    for others in (f"{ROOT}:{tmp_path}", ""):
        monkeypatch.setenv("PYTHONPATH", others)
        service_process.start_service(tmp_path / "log")
    assert found == [f"{ROOT}:{ROOT}:{tmp_path}", str(ROOT)]


@pytest.mark.slow
def test_a_service_part_that_is_stopped_leaves_no_service(tmp_path: Path) -> None:
    script = """
import contextlib, sys, time
from pathlib import Path
from benchmarks.gpu import service_throughput
@contextlib.contextmanager
def run_service(*_args):
    Path(sys.argv[-1]).with_suffix(".started").touch()
    try:
        time.sleep(600)
        yield
    finally:
        Path(sys.argv[-1]).with_suffix(".stopped").touch()
service_throughput.run_service = run_service
service_throughput.main()
"""
    results_file = tmp_path / "service.jsonl"
    command = [sys.executable, "-c", script, "--device", "cpu", "--results", str(results_file)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not results_file.with_suffix(".started").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert results_file.with_suffix(".stopped").exists()


def test_tests_of_kernels_need_no_packages_of_the_service() -> None:
    needed = {one.name: one.needs for one in PARTS}
    assert needed["tests"] == ("pytest",)
    assert {"pytest", "structlog", "orjson", "pydantic_settings"} <= set(needed["engine"])


SHAPES = ((9, 7), (5, 4), (3, 3), (2, 1))


@pytest.mark.parametrize("queries", [92, DECODER_QUERIES], ids=["points", "boxes"])
@pytest.mark.parametrize("key_aware", [True, False], ids=["key-aware", "plain"])
def test_baselines_can_be_recorded_as_graphs(queries: int, key_aware: bool) -> None:
    workload = Workload("test", key_aware, SHAPES, 2, 8, queries)
    inputs = cast(random_inputs(workload), torch.float16, "meta")
    tensors = [value for value in vars(inputs).values() if isinstance(value, torch.Tensor)]
    # A graph is recorded after a first run, which copies the sizes of the levels.
    constants = [
        level_sizes(SHAPES, torch.empty(0, dtype=dtype, device="meta"))
        for dtype in (torch.float16, torch.float32)
    ]
    with torch.inference_mode(), ForbidHostTransfers([*tensors, *constants]):
        output = official_formula(workload, inputs)
        if not key_aware:
            locations_and_weights(workload, inputs)
    assert output.shape == (2, queries, 256)


def test_kernels_of_all_parts_are_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: set[nvrtc.Kernel] = set()

    def keep(variant: nvrtc.Kernel, *_args: object, cache_required: bool) -> None:
        assert cache_required
        compiled.add(variant)

    monkeypatch.setattr(gpu, "machine_code", keep)
    monkeypatch.setattr(cuda_ahead, "machine_code", keep)
    monkeypatch.setattr(gpu, "DIRECTORY", ROOT / "no such folder")
    monkeypatch.setattr(Path, "mkdir", lambda *_args, **_options: None)
    monkeypatch.setattr(sys, "argv", ["gpu", "prepare"])
    assert gpu.main() == 0
    assert used_variants() <= compiled
    attention = [each for each in compiled if isinstance(each, nvrtc.Variant)]
    assert any(each.kind == "plain" and each.reference_size == 4 for each in attention)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", list(nvrtc.TYPES), ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_kernels_of_tests_that_need_a_gpu_are_among_them(
    kind: Kind, dtype: torch.dtype, backward: bool
) -> None:
    case = random_case(kind, heads=8, queries=509).mapped(dtype)  # as in test_cuda.py
    shapes = [side for shape in case.spatial_shapes for side in shape]
    located = (case.value, case.reference_points, case.sampling_offsets, shapes)
    inputs = cpu.Inputs(*located, case.query, case.key, case.logits)
    assert variant_of(inputs, backward=backward) in used_variants()


def wheels() -> list[str]:
    lines = (ROOT / "benchmarks" / "gpu" / "wheels.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_every_wheel_has_a_version_in_the_lock() -> None:
    lock = (ROOT / "requirements" / "lock.txt").read_text()
    assert [name for name in wheels() if f"\n{name}==" not in lock.lower()] == []


ALL_ON_CPU = {
    *("attention", "r50", "fusion", "default", "fuzz", "gradients", "training", "repeat"),
    "batches",
}
# Each of the others runs the program of one of these: r50 that of default, and so on.
ONE_OF_EACH_PROGRAM = {"attention", "fusion", "default", "fuzz", "gradients", "batches"}


def test_every_program_is_run_without_the_packages_of_the_service() -> None:
    programs = {part.name: part.command[:2] for part in PARTS}
    chosen = {programs[name] for name in ONE_OF_EACH_PROGRAM}
    assert chosen == {programs[name] for name in ALL_ON_CPU}
    assert len(chosen) == len(ONE_OF_EACH_PROGRAM)


@pytest.mark.slow
def test_tests_and_service_import_no_more_than_the_named_wheels(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    python = bare_environment.build(environment, BARE, with_requirements=True)
    bare_environment.add(environment, wheels(), with_requirements=False)
    bare = {**os.environ, "DEVICE": "cpu", "PYTHON": str(python), "PYTHONPATH": ""}
    script = str(ROOT / "benchmarks" / "gpu" / "run.sh")
    command = ["bash", script, str(tmp_path / "out"), "--parts", "engine"]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, archived(tmp_path / "out")
    notes = archived(tmp_path / "out")["parts.txt"]
    assert "engine: done in" in notes, notes
    code = "import benchmarks.gpu.service_throughput, service.app, service.engine.main"
    subprocess.run([python, "-c", code], env=bare, cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "parts"),
    [
        ([], ONE_OF_EACH_PROGRAM),
        pytest.param([], ALL_ON_CPU, marks=pytest.mark.family),
        pytest.param(
            wheels(), ALL_ON_CPU | {"service", "tests", "engine"}, marks=pytest.mark.family
        ),
    ],
    ids=["bare", "bare, all parts", "with wheels"],
)
def test_the_script_needs_no_more_than_it_names(
    tmp_path: Path, packages: list[str], parts: set[str]
) -> None:
    environment = tmp_path / "environment"
    python = bare_environment.build(environment, BARE, with_requirements=True)
    bare_environment.add(environment, packages, with_requirements=False)
    chosen = ["--parts", *sorted(parts)] if parts == ONE_OF_EACH_PROGRAM else []
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh"), str(tmp_path / "out"), *chosen],
        env={**os.environ, "DEVICE": "cpu", "PYTHON": str(python), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    notes = archived(tmp_path / "out")["parts.txt"]
    outcomes = {line.split()[1].rstrip(":"): line for line in notes.splitlines()}
    ran = {name for name, line in outcomes.items() if ": done in" in line}
    assert ran == parts, notes + done.stdout
    assert done.returncode == 0
