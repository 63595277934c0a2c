"""Every command in the documentation is run, or states why it is not."""

from __future__ import annotations

import functools
import re
import shlex

import pytest
from typer.testing import CliRunner

from service.cli import app
from tests.docs.conftest import BlockRunner
from tests.docs.pages import Block, blocks

BLOCKS = tuple(blocks())
COMMANDS = tuple(block for block in BLOCKS if block.language in ("sh", "python"))
RUN = tuple(block for block in COMMANDS if block.mode == "run")
SERVERS = tuple(block for block in COMMANDS if block.mode.startswith("run-until"))
NOT_RUN = tuple(block for block in COMMANDS if block.mode.startswith("not-run:"))
# The examples of proxies and systemd are run by tests/ops/test_proxies.py.
WITHOUT_COMMANDS = {"text", "json", "protobuf", "yaml", "nginx", "haproxy", "ini"}
# Commands of other pages than the README are run by `make test-slow`, or by `make test-family`.
_FIRST = "README.md"
_FAMILY = {"docs/export.md"}  # writing an ONNX file takes a minute of CPU time
MAX_NOT_RUN = 23


def test_every_block_has_a_mode() -> None:
    for block in BLOCKS:
        has_mode = block in (*RUN, *SERVERS, *NOT_RUN) or (
            block.language in WITHOUT_COMMANDS and not block.mode
        )
        assert has_mode, f"{block}: open it with `sh run`, `sh not-run: REASON` or `text`"


def test_blocks_that_are_not_run_are_few_and_have_reasons() -> None:
    assert len(NOT_RUN) <= MAX_NOT_RUN
    assert len(RUN) + len(SERVERS) >= len(NOT_RUN)
    for block in NOT_RUN:
        assert len(block.mode.removeprefix("not-run:").strip()) > 10, block


def _run(chosen: tuple[Block, ...]) -> pytest.MarkDecorator:
    def marks(page: str) -> list[pytest.MarkDecorator]:
        slow = [pytest.mark.slow] * (page != _FIRST)
        return slow + [pytest.mark.family] * (page in _FAMILY)

    return pytest.mark.parametrize(
        "block", [pytest.param(block, marks=marks(block.page), id=str(block)) for block in chosen]
    )


@_run(RUN)
def test_command_works(runner: BlockRunner, block: Block) -> None:
    done = runner.run(block)
    assert done.returncode == 0, f"{block.body}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("language", "body"),
    [
        ("sh", "curl localhost:8000/no-such-path"),
        ("sh", "cat no-such-photo.jpg | cat"),
        ("python", "from lite_detr_client import NoSuchClient"),
    ],
)
def test_failing_command_is_detected(runner: BlockRunner, language: str, body: str) -> None:
    assert runner.run(Block("page", 1, language, "run", body)).returncode != 0


@_run(SERVERS)
def test_server_starts_and_ends_on_sigterm(runner: BlockRunner, block: Block) -> None:
    text = block.mode.removeprefix("run-until").strip()
    output, status = runner.run_until(block, text)
    assert text in output
    assert status == 0, output


@functools.cache
def flags_of(command: str) -> frozenset[str]:
    """Returns the flags of `lite-detr COMMAND`."""
    done = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(
        app, [*command.split(), "--help"]
    )
    assert done.exit_code == 0, f"lite-detr {command} is not a command: {done.output}"
    return frozenset(re.findall(r"--[a-z][a-z0-9-]*", done.output))


@pytest.mark.parametrize(
    "block", [block for block in NOT_RUN if "lite-detr " in block.body], ids=str
)
def test_flags_of_a_command_that_is_not_run_exist(block: Block) -> None:
    for line in block.body.replace("\\\n", " ").splitlines():
        if not re.match(r"(\S*/)?lite-detr [a-z]", line):
            continue
        words = shlex.split(line, comments=True)[1:]
        command = " ".join(words[:2] if words[0] == "weights" else words[:1])
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= flags_of(command), block
