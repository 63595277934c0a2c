"""Compares the speed of two checkouts: the same benchmarks in each, in alternation.

    python -m benchmarks.before_after BEFORE [--rounds 5] [--only alone] [--json FILE]

BEFORE is the folder of another checkout; "after" is the checkout that this module belongs to. Each
round runs `benchmarks.serving.alone` and `benchmarks.model.cpu` once in each checkout, each with
its own code, in an order that alternates, on this interpreter. The ratios after / before are taken
within a round. Exits with status 1 if a median is worse than before by more than `--limit`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, table

_ALONE_RESULTS = tuple(
    Path("benchmarks/results/serving") / name for name in ("alone.json", "alone.md")
)
_HEADER = ("figure", "before", "after", "after / before", "range", "")

Document = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of a benchmark's JSON document.

    Attributes:
        name: shown in the table.
        read: document -> value; raises KeyError where the document has no such part.
        more_is_better: for throughput.
    """

    name: str
    read: Callable[[Document], float]
    more_is_better: bool = False


@dataclass(frozen=True)
class Comparison:
    """One figure of both checkouts over all rounds; the first three are medians."""

    name: str
    before: float
    after: float
    ratio: float  # after / before
    least_ratio: float
    largest_ratio: float
    worse: bool  # the median ratio is beyond the limit


def _edge(key: str) -> Callable[[Document], float]:
    return lambda document: _median_of(document["edge"]["rounds"], key)


def _model(key: str) -> Callable[[Document], float]:
    def read(document: Document) -> float:
        if document["default_model"] is None:  # --skip-model
            raise KeyError(key)
        return _median_of(document["default_model"]["rounds"], key)

    return read


def _cpu(side: str, key: str) -> Callable[[Document], float]:
    def read(document: Document) -> float:
        rows = {row["side"]: row for row in document["rows"] if row["model"] == "default"}
        return float(rows[side][key])

    return read


def _median_of(rounds: Sequence[Document], key: str) -> float:
    return float(statistics.median(one[key] for one in rounds))


ALONE = (
    Figure("edge: added latency, p50, ms", _edge("added_p50_ms")),
    Figure("edge: added latency at 10 requests/s, p50, ms", _edge("added_seldom_p50_ms")),
    Figure("edge: latency of single requests, p50, ms", _edge("single_p50_ms")),
    Figure("edge: CPU per response, x Pillow's decode and resize", _edge("cpu_ratio")),
    Figure("edge: responses/s at saturation", _edge("throughput"), more_is_better=True),
    Figure("edge: peak memory, MiB", lambda document: document["edge"]["edge_peak_mib"]),
    Figure("memory of all processes, MiB", lambda document: document["edge"]["all_processes_mib"]),
    Figure("edge: start to ready, s", lambda document: document["edge"]["ready_seconds"]),
    Figure("default model: CPU per response, ms", _model("service_cpu_ms")),
    Figure("default model: responses/s", _model("service_throughput"), more_is_better=True),
    Figure("default model: engine CPU per image, ms", _model("engine_cpu_ms")),
    Figure("default model: engine images/s", _model("engine_throughput"), more_is_better=True),
)
CPU = tuple(
    Figure(f"network {side}: {shown}", _cpu(side, key))
    for side in ("fp32", "bf16")
    for key, shown in (("wall_ms", "forward, ms"), ("cpu_ms", "forward, CPU ms"))
)


def run_alone(checkout: Path, options: argparse.Namespace) -> Document:
    """One run of `benchmarks.serving.alone`; the checkout's own result files stay as they are."""
    arguments = ["--rounds", "1", "--seconds", str(options.seconds)]
    arguments += ["--model-seconds", str(options.model_seconds)]
    if options.skip_model:
        arguments.append("--skip-model")
    files = [checkout / name for name in _ALONE_RESULTS]
    with _kept(files):
        _run(checkout, "benchmarks.serving.alone", arguments)
        document: Document = json.loads(files[0].read_text())
    return document


def run_cpu(checkout: Path, options: argparse.Namespace) -> Document:
    """One run of `benchmarks.model.cpu` with the default model."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--models", "default", "--repeats", str(options.repeats), "--output", folder]
        _run(checkout, "benchmarks.model.cpu", arguments)
        document: Document = json.loads((Path(folder) / "cpu.json").read_text())
    return document


BENCHMARKS = {"alone": (run_alone, ALONE), "cpu": (run_cpu, CPU)}


def _run(checkout: Path, module: str, arguments: Sequence[str]) -> None:
    _python(checkout, "-m", module, *arguments)


def _python(checkout: Path, *arguments: str) -> str:
    """Runs this interpreter in a checkout, which comes first on its import path."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed in {checkout}:\n{done.stderr}")
    return done.stdout


def check_imports(checkout: Path) -> None:
    """Exits where a checkout's benchmarks would measure another checkout's code."""
    modules = ["model", "service", "benchmarks.serving.alone", "benchmarks.model.cpu"]
    code = f"from importlib.util import find_spec as f; [print(f(n).origin) for n in {modules}]"
    for file in _python(checkout, "-c", code).splitlines():
        if not Path(file).resolve().is_relative_to(checkout):
            raise SystemExit(f"in {checkout}, Python imports {file}")


@contextmanager
def _kept(files: Sequence[Path]) -> Iterator[None]:
    """Restores the files' present contents at the end."""
    contents = {file: file.read_bytes() for file in files if file.exists()}
    try:
        yield
    finally:
        for file in files:
            if file in contents:
                file.write_bytes(contents[file])
            else:
                file.unlink(missing_ok=True)


def values_of(figures: Sequence[Figure], document: Document) -> dict[str, float]:
    """The figures that a document has."""
    values = {}
    for figure in figures:
        try:
            values[figure.name] = figure.read(document)
        except KeyError:
            continue
    return values


def compare(
    figure: Figure, before: Sequence[float], after: Sequence[float], limit: float
) -> Comparison:
    """Compares one figure; both sequences have a value for each round."""
    ratios = [new / old for old, new in zip(before, after, strict=True)]
    ratio = statistics.median(ratios)
    return Comparison(
        name=figure.name,
        before=statistics.median(before),
        after=statistics.median(after),
        ratio=ratio,
        least_ratio=min(ratios),
        largest_ratio=max(ratios),
        worse=1 / ratio > 1 + limit if figure.more_is_better else ratio > 1 + limit,
    )


def measure(name: str, before: Path, after: Path, options: argparse.Namespace) -> Document:
    """All rounds of one benchmark: the values of each round, and the comparisons."""
    run, figures = BENCHMARKS[name]
    values: dict[Path, list[dict[str, float]]] = {before: [], after: []}
    for number in range(options.rounds):
        for checkout in (before, after) if number % 2 == 0 else (after, before):
            values[checkout].append(values_of(figures, run(checkout, options)))
        print(f"{name}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    comparisons = [
        compare(
            figure,
            [one[figure.name] for one in values[before]],
            [one[figure.name] for one in values[after]],
            options.limit,
        )
        for figure in figures
        if all(figure.name in one for one in (*values[before], *values[after]))
    ]
    return {"before": values[before], "after": values[after], "comparisons": comparisons}


def _row(one: Comparison) -> tuple[str, ...]:
    return (
        one.name,
        f"{one.before:.4g}",
        f"{one.after:.4g}",
        f"{one.ratio:.3f}",
        f"{one.least_ratio:.3f} to {one.largest_ratio:.3f}",
        "worse" if one.worse else "",
    )


def main(arguments: Sequence[str]) -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="Compare the speed of two checkouts.")
    parser.add_argument("before", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--limit", type=float, default=0.02, help="a median may be worse by this")
    parser.add_argument("--seconds", type=float, default=6.0, help="of `alone`, per load")
    parser.add_argument("--model-seconds", type=float, default=15.0, help="of `alone`")
    parser.add_argument("--skip-model", action="store_true", help="of `alone`")
    parser.add_argument("--repeats", type=int, default=3, help="of `cpu`")
    parser.add_argument("--json", type=Path, help="file for the values of each round")
    options = parser.parse_args(arguments)
    before, after = options.before.resolve(), ROOT
    for checkout in (before, after):
        check_imports(checkout)
    results = {name: measure(name, before, after, options) for name in options.only}
    comparisons = [one for result in results.values() for one in result["comparisons"]]
    print(table(_HEADER, [_row(one) for one in comparisons]))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2, default=asdict) + "\n")
    return 1 if any(one.worse for one in comparisons) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
