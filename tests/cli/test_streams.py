"""What goes to standard output and what to standard error, on a terminal and into a pipe."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from featcache.settings import load_settings
from tests.support.cli_tools import (
    Cli,
    Terminal,
    environment,
    shell,
    start,
)

# Foreground and background colours; 0, 1 and 2 (plain, bold, dim) are none.
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
LINEAR, LOGISTIC = "linear-last-cls-1", "logistic-last-mean-1"

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_quiet_prints_nothing_to_stderr(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal: bars and spinners would show
    commands = (
        "init --force --dtype float32 --dataset reviews --model " + load_settings().backbone.model,
        "extract --split train --split validation --max-length 16",  # truncated, and no test split
        "train-head --epochs 2 --max-length 16",
        "run --epochs 2",
        "compare",
        "predict 好房间",
        "predict --json " + "好" * 99,
        "cache ls",
        "cache rm --all",
        "cache ls",
    )
    noisy = {command: cli.ok(*command.split(), "--quiet").err for command in commands}
    assert {command: err for command, err in noisy.items() if err} == {}


def test_stdout_has_only_data(cli: Cli, work: Path) -> None:
    """Each of these prints only its document on stdout."""
    first = cli.ok("extract", "--all-splits", "--max-length", "512", "--json")
    assert "longest text: 64 tokens" in first.err  # what was done otherwise than asked
    assert set(first.json) == {"splits"}
    cli.ok("extract", "--all-splits")
    cli.ok("train-head", "--epochs", "2")
    for argv in (["train-head", "--epochs", "2"], ["compare"], ["predict", "好"], ["cache", "ls"], ["run"]):
        assert cli.ok(*argv, "--json").json
    assert cli.ok("predict", "好").out.count("\n") == 1


@pytest.mark.parametrize("argv", ["--help", "compare", "compare nonsense"])
def test_colour_is_printed_only_on_a_terminal(argv: str, trained: Path) -> None:
    code = 6 if "nonsense" in argv else 0
    with Terminal(*argv.split()) as terminal:
        assert terminal.finish() == code
    assert COLOUR.search(terminal.seen)
    with Terminal(*argv.split(), NO_COLOR="1") as terminal:
        assert terminal.finish() == code
    assert "compare" in terminal.seen or LINEAR in terminal.seen
    assert not COLOUR.search(terminal.seen)
    piped = shell(*argv.split())
    assert piped.code == code and "\x1b" not in piped.out + piped.err


@pytest.mark.parametrize(
    "argv", ["compare", "compare --json", f"compare {LINEAR}", "cache ls", "cache info --all", "--help"]
)
def test_a_closed_pipe_is_no_error(argv: str, trained: Path) -> None:
    """`featcache compare | head -1`, where the reader has ended before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    process = start(argv.split(), environment(), stdout=writer, forked=argv != "--help")
    os.close(writer)
    assert process.communicate(timeout=180)[1] == b"" and process.returncode == 0


@pytest.mark.parametrize("argv", ["--help", "compare", "cache ls"])
def test_chinese_is_escaped_on_an_ascii_stream(argv: str, trained: Path) -> None:
    result = shell(*argv.split(), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (result.code, result.err) == (0, "")
