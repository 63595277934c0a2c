"""Every command that the documentation shows is run, or says why it cannot be."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from tests.docs.conftest import Reader
from tests.docs.pages import Block, blocks
from tests.support.repository import ROOT

BLOCKS = tuple(blocks())
COMMANDS = tuple(block for block in BLOCKS if block.language in ("sh", "python"))
RUN = tuple(block for block in COMMANDS if block.mode == "run")
SERVERS = tuple(block for block in COMMANDS if block.mode.startswith("run-until"))
NOT_RUN = tuple(block for block in COMMANDS if block.mode.startswith("not-run:"))
NO_COMMANDS = {"text", "json", "protobuf", "yaml"}
MOST_NOT_RUN = 16  # raise it for a reason only

pytestmark = pytest.mark.timeout(600)


def test_every_block_says_what_becomes_of_it() -> None:
    for block in BLOCKS:
        said = block in (*RUN, *SERVERS, *NOT_RUN) or (
            block.language in NO_COMMANDS and not block.mode
        )
        assert said, f"{block}: open it with `sh run`, `sh not-run: REASON` or `text`"


def test_excuses_are_few_and_have_reasons() -> None:
    assert len(NOT_RUN) <= MOST_NOT_RUN
    assert len(RUN) + len(SERVERS) >= len(NOT_RUN)
    for block in NOT_RUN:
        assert len(block.mode.removeprefix("not-run:").strip()) > 10, block


@pytest.mark.parametrize("block", RUN, ids=str)
def test_command_works_as_shown(reader: Reader, block: Block) -> None:
    done = reader.run(block)
    assert done.returncode == 0, f"{block.body}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("language", "body"),
    [
        ("sh", "curl localhost:8000/no-such-path"),
        ("sh", "lite-detr detect no-such-photo.jpg | cat"),
        ("python", "from lite_detr_client import NoSuchClient"),
    ],
)
def test_command_that_does_not_work_would_be_seen(reader: Reader, language: str, body: str) -> None:
    assert reader.run(Block("a page", 1, language, "run", body)).returncode != 0


@pytest.mark.parametrize("block", SERVERS, ids=str)
def test_server_starts_as_shown_and_ends_when_asked(reader: Reader, block: Block) -> None:
    awaited = block.mode.removeprefix("run-until").strip()
    said, status = reader.run_until(block, awaited)
    assert awaited in said
    assert status == 0, said


def flags_of(command: str) -> set[str]:
    """The flags that `lite-detr COMMAND` knows."""
    words = [sys.executable, "-m", "service", *command.split(), "--help"]
    plain = {"COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(words, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"lite-detr {command} is no command: {done.stderr}"
    return set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))


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
