"""Trains the default model further on CPU cores, in as many sessions as it takes.

    python -m benchmarks.accuracy.train_default run --folder runs/default --hours 12
    python -m benchmarks.accuracy.train_default run --folder runs/default
    python -m benchmarks.accuracy.train_default run --folder runs/default --anneal-now
    python -m benchmarks.accuracy.train_default try dense-4 --folder runs/default
    python -m benchmarks.accuracy.train_default try --list
    python -m benchmarks.accuracy.train_default try --report --folder runs/default

The second command continues after Ctrl-C, SIGTERM or a crash, from at most ten minutes before; the
folder remembers the hours. The learning rate is constant until the last hours (`--anneal-hours`),
so `--hours` may be changed until then. `--anneal-now` begins the last hours at once.
`--new-part` starts a new optimizer from the averaged weights, for a state that a later version of
the code cannot continue.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from benchmarks.accuracy.default_plan import (
    Decisions,
    changed_plan,
    read_plan,
    sole_user,
    trained_hours,
    write_plan,
)
from benchmarks.accuracy.default_recipe import EDITION, TRIES, run_options
from benchmarks.accuracy.default_tries import format_results, read_results, run_try
from benchmarks.accuracy.synthetic_set import synthetic_set
from model.training.loop import TrainingFailed, TrainingStopped, train
from model.training.processes import started_by_torchrun
from model.training.state import TrainingStateError

_SCENES = 150  # of the validation set while training
_LOWEST_PRIORITY = 19
_PROCESSES = (1, 2)
_POLL_SECONDS = 0.5
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # statuses of a run that is saved


def main() -> None:
    """Runs one of the commands."""
    options = _parse(sys.argv[1:])
    try:
        if options.command == "try":
            _try(options)
        else:
            _run(options)
    except TrainingStateError as error:
        sys.exit(f"{error}\n--new-part continues from the averaged weights of this run")
    except (OSError, ValueError, TrainingFailed) as error:
        sys.exit(str(error))
    except TrainingStopped as stop:
        sys.exit(stop.exit_status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--scenes", type=_count, default=_SCENES, help="of the validation set")
    both.add_argument(
        "--nice",
        type=int,
        choices=range(20),
        metavar="N",
        default=_LOWEST_PRIORITY,
        help="priority: 0 to 19",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[both], help="train, or continue")
    run.add_argument("--folder", type=Path, required=True, help="of everything that is written")
    run.add_argument("--hours", type=_positive, help="of training in all (default: 12)")
    run.add_argument("--anneal-hours", type=_positive, help="of the falling learning rate")
    run.add_argument("--anneal-now", action="store_true", help="begin these hours at once")
    run.add_argument("--new-part", action="store_true", help="new optimizer, averaged weights")
    # Two of one thread each take 1.1 s of CPU time a step and share little; one of two threads
    # waits at every layer, above all where other programs run.
    run.add_argument("--processes", type=int, default=2, choices=_PROCESSES, help="that train")
    one = commands.add_parser("try", parents=[both], help="a short run with one change")
    one.add_argument("name", nargs="?", choices=sorted(TRIES), help="of the change")
    one.add_argument("--folder", type=Path, help="of everything that is written")
    one.add_argument("--iterations", type=_count, default=600, help="optimizer steps")
    one.add_argument("--list", action="store_true", help="list the changes")
    one.add_argument("--report", action="store_true", help="print the table of the finished ones")
    options = parser.parse_args(arguments)
    if options.command == "try" and not options.list:
        if options.folder is None:
            one.error("--folder is required")
        if options.name is None and not options.report:
            one.error("name a change, or add --list or --report")
    return options


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _try(options: argparse.Namespace) -> None:
    if options.list:
        width = max(map(len, TRIES))
        for name, each in TRIES.items():
            print(f"{name:{width}}  {each.title}")
        return
    if options.name is not None:
        os.nice(options.nice)
        run_try(options.name, options.folder, options.iterations, options.scenes)
    print(format_results(read_results(options.folder)))


def _run(options: argparse.Namespace) -> None:
    """Trains; in several processes, each of which comes here again."""
    if started_by_torchrun():
        _train(options)
        return
    os.nice(options.nice)
    with sole_user(options.folder) as lock:
        plan = changed_plan(
            options.folder,
            read_plan(options.folder),
            Decisions(options.hours, options.anneal_hours, options.anneal_now, options.new_part),
        )
        plan.current_part(options.folder)
        write_plan(options.folder, plan)
        with sole_user(options.folder / "validation", wait=True):
            synthetic_set(options.folder / "validation", options.scenes, EDITION)
        print(
            f"{trained_hours(options.folder, plan):.2f} of {plan.hours:g} hours trained; the "
            f"learning rate falls in the last {plan.anneal_hours:g}",
            flush=True,
        )
        status = 0
        try:
            if options.processes == 1:
                _train(options)
            else:
                status = _start_processes(options, lock)
        except TrainingStopped as stop:
            status = stop.exit_status
        left = plan.hours - trained_hours(options.folder, plan)
        if left > 0 and status in (0, *_STOPPED):
            print(f"{left:.2f} hours are left: `run --folder {options.folder}` continues")
        sys.exit(status)


def _train(options: argparse.Namespace) -> None:
    part = read_plan(options.folder).current_part(options.folder)
    validation = synthetic_set(options.folder / "validation", options.scenes, EDITION)
    train(run_options(part, validation, options.processes))


def _start_processes(options: argparse.Namespace, lock: int) -> int:
    """Trains in several processes of one thread each; returns the exit status.

    They hold the lock of the folder, too, and so keep it should this process be killed.

    As torchrun starts them, which on SIGTERM prints a traceback and kills them after 30 seconds.
    """
    command = [sys.executable, "-m", "benchmarks.accuracy.train_default", "run"]
    command += ["--folder", str(options.folder), "--processes", str(options.processes)]
    command += ["--scenes", str(options.scenes)]
    environment = os.environ | {
        "WORLD_SIZE": str(options.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with ExitStack() as running:
        # In sessions of their own: Ctrl-C must reach each of them once, a second signal kills.
        processes = [
            running.enter_context(
                subprocess.Popen(
                    command,
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    start_new_session=True,
                    pass_fds=(lock,),
                )
            )
            for rank in range(options.processes)
        ]

        received: list[int] = []

        def forward(number: int, _frame: FrameType | None) -> None:
            received.append(number)
            for process in processes:
                process.send_signal(signal.SIGTERM)

        before = {each: signal.signal(each, forward) for each in (signal.SIGTERM, signal.SIGINT)}
        status = _wait(processes)
        for each, handler in before.items():
            signal.signal(each, handler)
    if received and status in _STOPPED:
        return 128 + received[0]
    return status


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all; when one fails, the others, which would wait for it, are ended."""
    left = list(processes)
    while left:
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
        # After a signal each saves; the first process has most to write.
        if any(process.returncode not in (None, 0, *_STOPPED) for process in processes):
            for process in left:
                process.kill()
        left = [process for process in left if process.returncode is None]
    codes = [int(process.returncode) for process in processes]
    failed = [code for code in codes if code not in (0, *_STOPPED)]
    code = max(failed or codes, key=abs)
    return 128 - code if code < 0 else code  # negative: killed by that signal


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
