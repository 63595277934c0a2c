"""The time for which the service is not ready after its engine was killed or stopped, under load.

Compared with the load and warm-up time that the new engine logs, and with the time since the start
of its process, which also imports torch.

    python -m benchmarks.serving.recovery --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from benchmarks.report import RESULTS, ROOT, conditions, table, write_report
from benchmarks.serving.service_process import Service, run_service

_IMAGE = ROOT / "docs" / "samples" / "codes.jpg"
_CLIENTS = 2


@dataclass(frozen=True)
class Row:
    """Times of one failure."""

    signal: str
    noticed_s: float  # from the signal to /readyz = 503
    not_ready_s: float  # from there to /readyz = 200
    model_load_s: float  # logged by the new engine: weights, warm-up
    process_and_load_s: float  # from the start of its process to readiness, including imports


class Clients:
    """Clients that send one image after another and count the responses by status (0: none)."""

    def __init__(self, url: str) -> None:
        """Stores the service's URL; starts no thread."""
        self.responses: Counter[int] = Counter()
        self._url = f"{url}/detect"
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside this context, the clients send requests."""
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
        image = _IMAGE.read_bytes()
        while not self._stop.is_set():
            request = Request(self._url, image, {"Content-Type": "image/jpeg"})
            try:
                with urlopen(request, timeout=120) as response:
                    self.responses[int(response.status)] += 1
            except HTTPError as error:
                self.responses[error.code] += 1
                time.sleep(0.05)
            except OSError:
                self.responses[0] += 1


def measure(service: Service, log: Path, name: str) -> Row:
    """Sends SIGKILL or SIGSTOP to the engine and waits until the service is ready again."""
    starts = _ready_lines(log)
    engine = service.engine_pid()
    began = time.monotonic()
    os.kill(engine, signal.Signals[name])
    noticed = service.wait_until(False)
    ready = service.wait_until(True)
    loaded = json.loads(_ready_lines(log)[len(starts)])
    return Row(
        signal=name,
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


def _table(rows: Sequence[Row]) -> str:
    columns = ("signal", "until noticed", "not ready", "load, warm-up", "process start to ready")
    cells = []
    for name in dict.fromkeys(row.signal for row in rows):
        those = [row for row in rows if row.signal == name]
        margins = [row.not_ready_s - row.process_and_load_s for row in those]
        fields = ("noticed_s", "not_ready_s", "model_load_s", "process_and_load_s")
        medians = [statistics.median(getattr(row, field) for row in those) for field in fields]
        shown = (f"{value:.2f}" for value in (*medians, statistics.median(margins)))
        cells.append((name, *shown))
    return table((*columns, "margin"), cells)


def main() -> None:
    """Kills and stops engines in alternation and writes the report."""
    parser = argparse.ArgumentParser(description="Measure the recovery from engine failures.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "serving")
    options = parser.parse_args()
    document = conditions()
    rows = []
    settings: dict[str, Any] = {"log_level": "info", "log_format": "json"}
    settings |= {"device": "cpu", "storm_restarts": 1000}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with run_service(log, **settings) as service:
            clients = Clients(service.url)
            with clients.running():
                for number in range(2 * options.rounds):
                    completed = clients.responses[HTTPStatus.OK]
                    while clients.responses[HTTPStatus.OK] < completed + 3:
                        time.sleep(0.05)
                    rows.append(measure(service, log, ("SIGKILL", "SIGSTOP")[number % 2]))
                    print(rows[-1], file=sys.stderr, flush=True)
    document |= {"rounds": options.rounds, "responses_by_status": dict(clients.responses)}
    document["rows"] = [asdict(row) for row in rows]
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(clients.responses.items()))
    sections = [
        f"Device cpu, {_CLIENTS} clients. Medians in seconds. The margin is the time that the "
        "service was not ready minus the start of the new process with its model load.\n",
        _table(rows),
        f"Responses during the measurement, by status (0: none): {counts}.\n",
    ]
    title = "Recovery: an engine of the default model is killed or stopped under load"
    write_report(options.output / "recovery", title, document, sections)


if __name__ == "__main__":
    main()
