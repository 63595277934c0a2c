"""Runs all parts of the GPU measurement within a time limit; loses nothing if it is killed.

    python -m benchmarks.gpu.run [--device cuda] [--seconds 600] [--parts NAME ...] FOLDER

Each part is a process with its own limit, most valuable first. It writes its results line by line
(`results.py`), so a part that is stopped keeps what it has measured. While parts run and after each
of them, FOLDER/results.tar.gz (results and output of all parts) and FOLDER/report.md (`page.py`)
are rewritten, each by a rename. A failed part does not stop the others, nor does a page that cannot
be written; the exit status is 1 after a failed part. Of a long output the archive has both ends.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.page import ALL_FIGURES, report

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SAVE_SECONDS = 10.0  # between two copies of the results while a part runs
_LEAST_SECONDS = 5.0  # a part is not started with less
_KILL_SECONDS = 3.0  # after which a part that ignores SIGTERM is killed
_SAVED = 3.0  # seconds kept for the last copy
_CPU_FACTOR = 8.0  # of all limits on a CPU, where the script is only tried
_END_BYTES = 1 << 19  # of each end of a long output, which the archive keeps


@dataclass(frozen=True)
class Part:
    """One process of the measurement."""

    name: str
    seconds: float  # limit
    command: tuple[str, ...]  # after the interpreter; RESULTS: the result file, DEVICE: the device
    small: tuple[str, ...] = ()  # further arguments on a CPU
    last: tuple[str, ...] = ()  # further arguments, after those
    needs: tuple[str, ...] = ()  # packages
    tool: str = ""  # a program that runs the command; its arguments follow in `tool_arguments`
    tool_arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()  # variables that are added
    only_on_gpu: bool = False


_RESULTS = ("--results", "RESULTS", "--device", "DEVICE")
_SERVICE = (
    *("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "pydantic_settings", "grpc"),
    *("structlog", "typer", "prometheus_client", "anyio"),
)
_PYTEST = (
    *("-m", "pytest", "-q", "-c", "benchmarks/gpu/pytest.ini", "--rootdir", "."),
    *("-p", "no:cacheprovider", "-m", "requires_cuda"),
)
_KERNEL_FILTER = ("--kernel-name", "kns=lite_detr")

# The limits add up to less than 600 seconds.
PARTS = (
    Part("attention", 70, ("-m", "benchmarks.gpu.attention", *_RESULTS), ("--small",)),
    Part(
        "r50",
        110,
        ("-m", "benchmarks.gpu.pipeline", "--models", "r50", "--seconds", "100", *_RESULTS),
        ("--size", "128", "192", "--batches", "2", "1", "--repeats", "1"),
    ),
    Part("fusion", 30, ("-m", "benchmarks.gpu.fusion", *_RESULTS), ("--size", "64", "96")),
    Part(
        "counters",
        45,
        ("-m", "benchmarks.gpu.attention", "--only-kernels", "--results", "RESULTS"),
        tool="ncu",
        tool_arguments=(
            "--clock-control",
            "none",
            "--kernel-name-base",
            "demangled",
            "--kernel-name",
            "regex:lite_detr",
            "--launch-count",
            "12",
            "--metrics",
            "gpu__time_duration.sum,l1tex__t_sector_hit_rate.pct,lts__t_bytes.sum,"
            "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum,l1tex__data_pipe_lsu_wavefronts.sum,"
            "smsp__inst_executed.sum,sm__warps_active.avg.pct_of_peak_sustained_active,"
            "dram__bytes.sum",
        ),
        only_on_gpu=True,
    ),
    Part(
        "default",
        45,
        ("-m", "benchmarks.gpu.pipeline", "--models", "default", "--seconds", "37", *_RESULTS),
        ("--size", "128", "192", "--batches", "2", "1", "--repeats", "1"),
    ),
    Part(
        "tests",
        25,
        (*_PYTEST, "tests/model/ops/test_cuda.py", "tests/model/ops/test_add_norm.py"),
        needs=("pytest",),
    ),
    Part("engine", 25, (*_PYTEST, "tests/service/engine"), needs=("pytest", *_SERVICE)),
    Part(
        "fuzz",
        35,
        ("-m", "benchmarks.kernels.gpu", "check", "--seconds", "25", *_RESULTS),
        ("--seconds", "2", "--small"),
    ),
    Part(
        "gradients",
        30,
        ("-m", "benchmarks.kernels.gradients", "check", "--calls", "18", *_RESULTS),
        ("--calls", "2", "--small"),
    ),
    Part(
        "training",
        25,
        ("-m", "benchmarks.kernels.gradients", "time", "--repeats", "5", *_RESULTS),
        ("--repeats", "1", "--small"),
    ),
    Part("repeat", 30, ("-m", "benchmarks.kernels.gpu", "repeat", *_RESULTS), ("--small",)),
    Part(
        "service",
        60,
        ("-m", "benchmarks.gpu.service_throughput", "--seconds", "16", *_RESULTS),
        ("--seconds", "4", "--in-flight", "1", "2"),
        last=("--", "--warm-up-seconds", "12"),  # the default would take the time of the part
        needs=_SERVICE,
    ),
    Part(
        "sanitizer",
        35,
        ("-m", "benchmarks.kernels.gpu", "check", "--seconds", "20", "--calls", "12", *_RESULTS),
        tool="compute-sanitizer",
        tool_arguments=(
            *("--tool", "memcheck", "--error-exitcode", "9", *_KERNEL_FILTER),
            *("--report-api-errors", "no"),  # torch makes calls that may fail
        ),
        # Otherwise tensors are parts of larger allocations, and what is beyond one is not seen.
        environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
        only_on_gpu=True,
    ),
    Part(
        "batches",
        25,
        ("-m", "benchmarks.gpu.batches", "--count", "4", *_RESULTS),
        ("--count", "1", "--size", "128", "192"),
    ),
)


class Run:
    """A run of parts; see the module."""

    def __init__(
        self,
        folder: Path,
        device: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._device = folder, device
        self._factor = _CPU_FACTOR if device == "cpu" else 1.0
        self._clock, self._end = clock, clock() + self._factor * seconds - _SAVED
        self._work = Path(tempfile.mkdtemp(prefix="gpu-run-"))
        self._child: subprocess.Popen[bytes] | None = None
        self.failed: list[str] = []

    def run(self, parts: Sequence[Part]) -> int:
        """Runs the parts in order; returns the exit status."""
        for part in parts:
            outcome = self._run_part(part)
            self._note(f"{part.name}: {outcome}")
            self.save()
        return 1 if self.failed else 0

    def stop(self) -> None:
        """Ends the part that runs, and saves."""
        if self._child is not None:
            _end(self._child)
        self.save()

    def save(self) -> None:
        """Rewrites the archive and the report; what fails is printed and ends nothing."""
        for rewrite in (self._save_archive, self._save_report):
            try:
                rewrite()
            except Exception:
                print(f"not saved: {traceback.format_exc()}", file=sys.stderr, flush=True)

    def _save_archive(self) -> None:
        fresh = self._folder / "results.tar.gz.new"
        with tarfile.open(fresh, "w:gz") as archive:
            for file in sorted(self._work.iterdir()):
                content = _both_ends(file) if file.suffix == ".txt" else file.read_bytes()
                entry = tarfile.TarInfo(file.name)
                entry.size, entry.mtime = len(content), file.stat().st_mtime
                archive.addfile(entry, io.BytesIO(content))
        os.replace(fresh, self._folder / "results.tar.gz")

    def _save_report(self) -> None:
        fresh = self._folder / "report.md.new"
        fresh.write_text(report(self._work), encoding="utf-8")
        os.replace(fresh, self._folder / "report.md")

    def summary(self) -> str:
        """The report without the list of all figures, for the terminal."""
        page = self._folder / "report.md"
        return page.read_text(encoding="utf-8").partition(ALL_FIGURES)[0] if page.exists() else ""

    def close(self) -> None:
        """Removes the files that the archive contains."""
        shutil.rmtree(self._work)

    def _note(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        print(f"==> {line}", flush=True)
        with (self._work / "parts.txt").open("a", encoding="utf-8") as notes:
            notes.write(line + "\n")

    def _run_part(self, part: Part) -> str:
        """Runs a part; returns what became of it."""
        if reason := self._reason_to_leave_out(part):
            return f"left out: {reason}"
        limit = min(self._factor * part.seconds, self._end - self._clock())
        if limit < _LEAST_SECONDS:
            return "left out: no time"
        started = self._clock()
        with (self._work / f"{part.name}.txt").open("wb") as output:
            self._child = subprocess.Popen(
                self._command(part),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here
                # Idle threads of torch spin otherwise, which on a busy machine costs minutes.
                env={**os.environ, "OMP_WAIT_POLICY": "passive", **dict(part.environment)},
            )
            status = self._wait(self._child, started + limit)
        self._child = None
        taken = f"{self._clock() - started:.1f} s"
        if status is None:
            self.failed.append(part.name)
            return f"stopped after {taken}"
        if status != 0:
            self.failed.append(part.name)
            return f"failed with status {status} after {taken}"
        return f"done in {taken}"

    def _wait(self, child: subprocess.Popen[bytes], end: float) -> int | None:
        """Waits for a process and saves now and then; None: it was stopped at its end."""
        while (left := end - self._clock()) > 0:
            try:
                return child.wait(min(left, _SAVE_SECONDS))
            except subprocess.TimeoutExpired:
                self.save()
        _end(child)
        return None

    def _reason_to_leave_out(self, part: Part) -> str:
        if part.only_on_gpu and self._device == "cpu":
            return "needs a GPU"
        missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        if part.tool and shutil.which(part.tool) is None:
            return f"no {part.tool} here"
        return ""

    def _command(self, part: Part) -> list[str]:
        given = {"RESULTS": str(self._work / f"{part.name}.jsonl"), "DEVICE": self._device}
        arguments = [given.get(argument, argument) for argument in part.command]
        arguments += part.small if self._device == "cpu" else ()
        arguments += part.last
        tool = [part.tool, *part.tool_arguments] if part.tool else []
        return [*tool, sys.executable, *arguments]


def _both_ends(file: Path) -> bytes:
    """The content of a file; of a long one its beginning and its end."""
    size = file.stat().st_size
    if size <= 2 * _END_BYTES:
        return file.read_bytes()
    with file.open("rb") as opened:
        head = opened.read(_END_BYTES)
        opened.seek(size - _END_BYTES)
        tail = opened.read(_END_BYTES)
    return head + f"\n... {size - 2 * _END_BYTES} bytes left out ...\n".encode() + tail


def _die_with_parent() -> None:
    """Makes the kernel kill a part if this process is killed: it would keep the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; returns 1 after a failed one."""
    parser = argparse.ArgumentParser(description="Run everything that needs a GPU.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=600.0, help="for everything")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS])
    options = parser.parse_args(arguments)
    run = Run(options.folder, options.device, options.seconds)

    def stop(number: int, _frame: object) -> None:
        run.stop()
        run.close()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    chosen = [part for part in PARTS if options.parts is None or part.name in options.parts]
    status = run.run(chosen)
    run.close()
    print(run.summary())
    if run.failed:
        print(f"failed: {', '.join(run.failed)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
