"""`-h` on one screen, `--help` with every flag, commands in groups, and the completion of shells."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from featcache.translation.language import in_language
from featcache_cli.help import GROUPS, help_text, short_help
from featcache_cli.main import COMMANDS, _parser, word_of
from tests.support.cli_tools import Cli, environment, widest

MOST_LINES = 24
CONTRACT = ("init", "extract", "train-head", "compare", "predict", "cache", "run", "demo")
NAMES = sorted({*CONTRACT, *map(word_of, COMMANDS)})
HEAVY = {"torch", "transformers", "datasets", "sklearn"}


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


def test_help_is_chinese_where_that_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with in_language("zh"):
        parsers = [_parser()]
        for parser in parsers:
            short, full = short_help(parser, 80), parser.format_help()
            assert len(short) <= MOST_LINES and max(map(cell_len, short)) <= 80, short
            assert widest(full) <= 80, full
            assert short[0].startswith("用法：") and full.startswith("用法：")
            shown = "".join(full.split())
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parsers += action.choices.values()
                elif action.help:
                    said = help_text(action)
                    assert re.search("[\u4e00-\u9fff]", said), said
                    assert "".join(said.split()) in shown, said


def test_a_default_is_told_once_and_in_words(cli: Cli) -> None:
    assert re.search(r"checkpoint\s+\(default:\s+yes\)\n", cli.ok("finetune", "--help").out)
    chinese = re.sub(r"\s+", "", cli.ok("finetune", "--help", "--lang", "zh").out)
    assert "被中断的训练（默认：是）--name" in chinese and "（默认：0.0002）" in chinese


def test_every_command_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(word_of(name) for name in COMMANDS)


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


def test_help_is_quick_and_names_commands_and_exit_codes() -> None:
    code = (
        "import sys\n"
        "from featcache_cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        f"print('HEAVY', sorted({HEAVY} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        capture_output=True,
        text=True,
        env=environment(COLUMNS="80"),
    )
    assert done.returncode == 0 and done.stderr == "HEAVY []\n"
    for command in NAMES:
        assert re.search(rf"^ +{command}\b", done.stdout, re.MULTILINE), command
    codes = re.search(r"exit codes: (.*?)\n\n|exit codes: (.*)", done.stdout, re.DOTALL)
    assert codes
    for number in ("0 done", "2 usage", "3 data", "4 model", "5 cache", "6 head", "1 anything", "130"):
        assert number in " ".join(codes[0].split())


def test_commands_without_a_model_do_not_import_torch(trained: Path) -> None:
    code = (
        "import sys\n"
        "from featcache_cli.main import main\n"
        "assert main(['compare']) == main(['cache', 'ls']) == main(['extract', '--help']) == 0\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment())


@pytest.mark.parametrize("command", NAMES)
def test_every_command_has_an_example_that_parses(command: str, cli: Cli) -> None:
    text = cli.ok(command, "--help").out
    examples = [line.strip() for line in text.partition("\nexample:\n")[2].splitlines() if line.strip()]
    assert examples
    for example in examples:
        argv = shlex.split(example)
        assert argv[:2] == ["featcache", command]
        assert _parser().parse_args(argv[1:]).run


@pytest.mark.parametrize("command", ["init", "extract", "train-head", "run"])
def test_commands_have_the_common_flags(command: str, cli: Cli) -> None:
    flags = (
        "--model --revision --dataset --data-files --text-column --pair-column --label-column "
        "--label-names --views --pooling --prompt --max-length --batch-tokens --dtype --device "
        "--cache-dir --reports-dir --seed --json --quiet"
    )
    text = cli.ok(command, "--help").out
    assert [flag for flag in flags.split() if not re.search(rf"{flag}\b", text)] == []
    for default in ("bert-base-chinese", "lansinuote/ChnSentiCorp"):
        assert default in text


@pytest.mark.parametrize("command", ["", *NAMES])
def test_help_fits_a_terminal(command: str, cli: Cli) -> None:
    text = cli.ok(*command.split(), "--help").out
    assert widest(text) <= 80, [line for line in text.splitlines() if cell_len(line) > 80]
