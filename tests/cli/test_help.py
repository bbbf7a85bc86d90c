"""`-h` on one screen, `--help` with every flag, commands in groups, and the completion of shells."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from featcache_cli.help import GROUPS
from featcache_cli.main import COMMANDS, _parser
from tests.support.cli_tools import Cli, widest

MOST_LINES = 24


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
    """Every command, those of commands too."""
    yield name
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for key, sub in action.choices.items():
                yield from commands(sub, f"{name} {key}".strip())


@pytest.mark.parametrize("command", list(commands(_parser())))
def test_short_help_is_one_screen(command: str, cli: Cli) -> None:
    text = cli.ok(*command.split(), "-h").out
    assert 8 <= len(text.splitlines()) <= MOST_LINES and widest(text) <= 80
    assert "--help" in text.splitlines()[-1] or not command
    assert text.count("\n  --") <= 5


def test_short_help_shows_the_flags_that_matter(cli: Cli) -> None:
    text = cli.ok("train-head", "-h").out
    assert "--head KIND" in text and "--rows-per-class" in text and "--warmup" not in text
    assert "--warmup" in cli.ok("train-head", "--help").out


def test_the_command_alone_is_its_short_help(cli: Cli) -> None:
    assert cli.ok().out == cli.ok("-h").out and "featcache run reviews.csv" in cli.ok().out


def test_every_command_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(name.replace("_", "-") for name in COMMANDS)


def test_bash_completes_commands_flags_choices_and_files(cli: Cli, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    script = tmp_path / "completion.sh"
    script.write_text(cli.ok("completion", "bash").out, encoding="utf-8")
    (tmp_path / "reviews.csv").touch()

    def completed(*words: str) -> list[str]:
        line = f'. {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _featcache; echo "${{COMPREPLY[@]}}"'
        argv = [bash, "-c", line, "bash", "featcache", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()

    assert completed("ru") == ["run", "runs"]
    assert completed("train-head", "--head", "e") == ["exact"]
    assert completed("train-head", "--rows-") == ["--rows-per-class"]
    assert completed("runs", "r") == ["rename", "rm"]
    assert completed("cache", "gc", "--dry") == ["--dry-run"]
    assert completed("run", "rev") == ["reviews.csv"]


SHELLS = [("zsh", "autoload"), ("fish", "complete"), ("powershell", "Register")]


@pytest.mark.parametrize(("shell", "start"), SHELLS)
def test_other_shells_know_every_command(shell: str, start: str, cli: Cli) -> None:
    text = cli.ok("completion", shell).out
    assert text.startswith(start)
    for words in ("train-head", "rename", "attentive"):
        assert words in text
    cli.refused(2, ["completion", "fihs"], "did you mean fish")
