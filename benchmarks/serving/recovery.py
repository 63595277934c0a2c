"""How long a service is not ready after its engine was killed or stopped, under load.

Compared with what the engine itself says that it needed to load and warm up the model, and with
the whole time from the start of its process, which also imports torch.

    python -m benchmarks.serving.recovery --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from benchmarks.serving.service_process import ROOT, RunningService, run_service

RESULT = ROOT / "benchmarks" / "results" / "serving" / "recovery"
_PHOTO = ROOT / "docs" / "samples" / "codes.jpg"
_CLIENTS = 2


@dataclass(frozen=True)
class Row:
    """One death."""

    how: str
    noticed_s: float  # from the signal to /readyz = 503
    not_ready_s: float  # from there to /readyz = 200
    model_load_s: float  # of the new engine by its own clock: weights, warm-up
    process_and_load_s: float  # from its start to its readiness, imports of torch included


class Load:
    """Clients that send one photo after another; every answer is counted."""

    def __init__(self, url: str) -> None:
        """Starts nothing yet."""
        self.outcomes: Counter[int] = Counter()
        self._url = f"{url}/detect"
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps the service busy meanwhile."""
        threads = [threading.Thread(target=self._work) for _ in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _work(self) -> None:
        photo = _PHOTO.read_bytes()
        while not self._stop.is_set():
            request = Request(self._url, photo, {"Content-Type": "image/jpeg"})
            try:
                with urlopen(request, timeout=120) as answer:
                    self.outcomes[int(answer.status)] += 1
            except HTTPError as error:
                self.outcomes[error.code] += 1
                time.sleep(0.05)
            except OSError:
                self.outcomes[0] += 1


def measure(service: RunningService, log: Path, how: str) -> Row:
    """Ends the engine once."""
    starts = _ready_lines(log)
    engine = service.engine_pid()
    began = time.monotonic()
    os.kill(engine, signal.SIGKILL if how == "SIGKILL" else signal.SIGSTOP)
    noticed = service.wait_until(False)
    ready = service.wait_until(True)
    loaded = json.loads(_ready_lines(log)[len(starts)])
    return Row(
        how=how,
        noticed_s=round(noticed - began, 3),
        not_ready_s=round(ready - noticed, 3),
        model_load_s=round(loaded["load_seconds"] + loaded["warm_up_seconds"], 3),
        process_and_load_s=round(_age_at_readiness(service.engine_pid()), 3),
    )


def _ready_lines(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if re.search("engine ready", line)]


def _age_at_readiness(pid: int) -> float:
    """Seconds since a process was started (field 22 of its stat, in clock ticks since boot)."""
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _markdown(rows: Sequence[Row], outcomes: Counter[int], rounds: int, load: float) -> str:
    lines = [
        "# Recovery: an engine of the default model is killed or stopped under load",
        "",
        f"`python -m benchmarks.serving.recovery --rounds {rounds}` on {os.cpu_count()} cores "
        f"shared with other work (load average {load:.1f}); device cpu, {_CLIENTS} clients.",
        "Medians, seconds. The margin is what not being ready took beyond the start of the new "
        "process with its model load.",
        "",
        "| how | until noticed | not ready | load, warm-up | process start to ready | margin |",
        "|---|---|---|---|---|---|",
    ]
    for how in dict.fromkeys(row.how for row in rows):
        those = [row for row in rows if row.how == how]
        margins = [row.not_ready_s - row.process_and_load_s for row in those]
        columns = ("noticed_s", "not_ready_s", "model_load_s", "process_and_load_s")
        medians = [statistics.median(getattr(row, name) for row in those) for name in columns]
        cells = " | ".join(f"{value:.2f}" for value in (*medians, statistics.median(margins)))
        lines.append(f"| {how} | {cells} |")
    told = ", ".join(f"{status}: {number}" for status, number in sorted(outcomes.items()))
    lines += ["", f"Answers meanwhile by status (0: none): {told}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Kills and stops in turn and writes both results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with run_service(log, device="cpu", storm_restarts=1000) as service:
            load = Load(service.url)
            with load.running():
                for number in range(2 * options.rounds):
                    answered = load.outcomes[HTTPStatus.OK]
                    while load.outcomes[HTTPStatus.OK] < answered + 3:
                        time.sleep(0.05)
                    rows.append(measure(service, log, ("SIGKILL", "SIGSTOP")[number % 2]))
                    print(rows[-1], flush=True)
    average = os.getloadavg()[0]
    record = {
        "rounds": options.rounds,
        "load_average": average,
        "cpus": os.cpu_count(),
        "day": time.strftime("%Y-%m-%d"),
        "answers_by_status": dict(load.outcomes),
        "rows": [asdict(row) for row in rows],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(_markdown(rows, load.outcomes, options.rounds, average))


if __name__ == "__main__":
    main()
