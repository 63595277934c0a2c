"""The training of the default model: its plan, its options, its short runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("zxingcpp", reason="zxing-cpp, which draws the codes, is missing")
pytest.importorskip("cv2", reason="OpenCV, which draws the scenes, is missing")

from benchmarks.accuracy import train_default
from benchmarks.accuracy.default_plan import (
    PLAN_FILE,
    Decisions,
    Plan,
    PlanError,
    changed_plan,
    read_plan,
    sole_user,
    trained_hours,
    write_plan,
)
from benchmarks.accuracy.default_recipe import BATCH_SIZE, TRIES, run_options, try_options
from benchmarks.accuracy.default_tries import TryResult, format_results, read_results
from model.training.run_folder import LAST_FILE, STATE_FILE
from model.training.state import _FORMAT
from tests.support.repository import ROOT

_RESULT = TryResult("recipe", 600, 150, 12.0, 0.5, 0.7, 0.2, 0.4, 0.8, 9, 20)


def _write_state(folder: Path, hours: float) -> None:
    """A state of a later version, with fields that this one does not know."""
    folder.mkdir(parents=True, exist_ok=True)
    position = {"iteration": 9, "elapsed_seconds": hours * 3600, "of_a_later_version": 1}
    torch.save({"format": _FORMAT, "position": position}, folder / STATE_FILE)


def _write_log(folder: Path, hours: float) -> None:
    row = {"iteration": 9, "elapsed_seconds": hours * 3600}
    (folder / "log.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


def test_a_folder_remembers_its_plan(tmp_path: Path) -> None:
    assert read_plan(tmp_path) == Plan()
    plan = changed_plan(tmp_path, Plan(), Decisions(hours=20, anneal_hours=4))
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
    assert changed_plan(tmp_path, plan, Decisions()) == plan
    values = json.loads((tmp_path / PLAN_FILE).read_text()) | {"of_a_later_version": 1}
    (tmp_path / PLAN_FILE).write_text(json.dumps(values))
    assert read_plan(tmp_path) == plan


@pytest.mark.parametrize("text", ["", "[]", '{"hours": '])
def test_a_damaged_plan_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAN_FILE).write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json is not a plan"):
        read_plan(tmp_path)


def test_a_run_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(PlanError, match="belongs to something else"):
        read_plan(tmp_path)


def test_the_fall_of_the_learning_rate_begins_once(tmp_path: Path) -> None:
    _write_state(tmp_path / "run", 5.0)
    assert trained_hours(tmp_path, Plan()) == pytest.approx(5.0)
    falling = changed_plan(tmp_path, Plan(), Decisions(anneal_hours=2, anneal_now=True))
    assert falling.hours == pytest.approx(7.0)
    _write_state(tmp_path / "run", 6.5)
    assert changed_plan(tmp_path, falling, Decisions(anneal_now=True)) == falling
    with pytest.raises(PlanError, match="--anneal-now decides the hours"):
        changed_plan(tmp_path, falling, Decisions(hours=9, anneal_now=True))
    with pytest.raises(PlanError, match="do not fit"):
        changed_plan(tmp_path, Plan(), Decisions(hours=1))


def test_a_new_part_starts_from_the_averaged_weights_and_keeps_the_hours(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _write_state(run, 5.0)
    with pytest.raises(PlanError, match="no weights"):
        changed_plan(tmp_path, Plan(), Decisions(new_part=True))
    (run / LAST_FILE).write_bytes(b"weights")
    (run / STATE_FILE).write_bytes(b"damaged")
    _write_log(run, 4.9)
    plan = changed_plan(tmp_path, Plan(), Decisions(new_part=True))
    part = plan.current_part(tmp_path)
    assert part.folder == tmp_path / "run-2"
    assert part.init_from == run / LAST_FILE
    assert part.hours == pytest.approx(12 - 4.9)
    assert part.later_hours == pytest.approx(12 * 0.45 - 4.9)
    options = run_options(part, (tmp_path / "a.json", tmp_path), 2)
    assert options.init_from == run / LAST_FILE
    with pytest.raises(PlanError, match="hours are over"):
        replace(plan, hours=4.0).current_part(tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_has_as_many_images_with_any_number_of_processes(
    tmp_path: Path, processes: int
) -> None:
    part = Plan(hours=10, anneal_hours=2).current_part(tmp_path)
    options = run_options(part, (tmp_path / "a.json", tmp_path), processes)
    assert options.batch_size * processes == BATCH_SIZE
    assert options.threads * processes == 2
    assert options.max_minutes == pytest.approx(600)
    assert options.anneal_share == options.final_share == pytest.approx(0.2)
    assert (options.resume, options.overwrite) == (True, True)
    _write_state(part.folder, 1.0)
    assert not run_options(part, (tmp_path / "a.json", tmp_path), processes).overwrite


def test_each_try_changes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    base = try_options("recipe", tmp_path, 600)
    for name, each in TRIES.items():
        options = try_options(name, tmp_path, 600)
        differing = {
            field
            for field in type(options).model_fields
            if getattr(options, field) != getattr(base, field)
        }
        assert differing == set(each.changes), name
        assert options.seed == base.seed


def test_the_table_shows_differences_from_the_recipe(tmp_path: Path) -> None:
    changed = replace(_RESULT, name="dense-4", ap=0.55, false_alarms=4)
    for result in (changed, _RESULT, replace(changed, iterations=50)):
        run = tmp_path / "tries" / f"{result.name}-{result.iterations}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(vars(result)))
    found = read_results(tmp_path)
    assert [(each.name, each.iterations) for each in found] == [
        ("dense-4", 50), ("recipe", 600), ("dense-4", 600),
    ]  # fmt: skip
    *_, alone, base, other = format_results(found).splitlines()
    assert "| 0.500 |" in base
    assert "| 0.550 (+0.050) |" in other
    assert "| 4 (-5) |" in other
    assert "(+" not in alone
    assert format_results([]) == "no try is finished yet"


def test_problems_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "tries" / "recipe-600").mkdir(parents=True)
    (tmp_path / "tries" / "recipe-600" / "result.json").write_text("{}")
    monkeypatch.setattr("os.nice", lambda _: 0)
    wrong = (["run", "--folder", str(file)], ["try", "--report", "--folder", str(tmp_path)])
    for arguments, problem in zip(wrong, ("exists", "is not a result"), strict=True):
        monkeypatch.setattr(sys, "argv", ["train_default", *arguments])
        with pytest.raises(SystemExit, match=problem):
            train_default.main()
    assert file.read_text() == "mine"
    capsys.readouterr()


def test_a_folder_has_one_user_at_a_time(tmp_path: Path) -> None:
    with (
        sole_user(tmp_path),
        pytest.raises(PlanError, match="another process"),
        sole_user(tmp_path),
    ):
        pass


def test_a_process_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    with sole_user(tmp_path) as lock:
        waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        process = subprocess.Popen(waiting, stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(PlanError, match="another process"), sole_user(tmp_path):
        pass
    process.communicate()
    with sole_user(tmp_path):
        pass


def test_processes_that_wait_for_a_failed_one_are_ended() -> None:
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    failing = [sys.executable, "-c", "import sys; sys.exit(3)"]
    processes = [subprocess.Popen(command) for command in (waiting, failing)]
    assert train_default._wait(processes) != 0
    assert all(process.returncode is not None for process in processes)


def test_processes_that_save_after_a_signal_are_left_to_end() -> None:
    saving = [sys.executable, "-c", "import sys, time; time.sleep(1); sys.exit(143)"]
    stopped = [sys.executable, "-c", "import sys; sys.exit(143)"]
    processes = [subprocess.Popen(command) for command in (saving, stopped)]
    assert train_default._wait(processes) == 143
    assert [process.returncode for process in processes] == [143, 143]


def test_a_killed_process_gives_the_status_of_shells() -> None:
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert train_default._wait([subprocess.Popen(killed)]) == 137


@pytest.mark.parametrize(
    "arguments",
    [
        ["try"], ["try", "unknown", "--folder", "x"], ["try", "recipe"], ["run"],
        ["run", "--folder", "x", "--hours", "0"], ["run", "--folder", "x", "--hours", "nan"],
        ["run", "--folder", "x", "--scenes", "0"], ["run", "--folder", "x", "--nice", "-5"],
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        train_default._parse(arguments)


@pytest.mark.slow
def test_a_short_training_ends_with_weights_and_a_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.accuracy.train_default", "run", "--processes", "1"]
    command += ["--folder", str(tmp_path / "it"), "--scenes", "2"]
    command += ["--hours", "0.003", "--anneal-hours", "0.001"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finished at iteration" in done.stderr
    assert (tmp_path / "it" / "run" / "model.safetensors").is_file()
