"""`featcache plan`: what it prints, what it refuses, and that the command it names is one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.settings import load_settings
from featcache_cli.commands.plan import command_lines
from featcache_cli.main import _parse
from featcache_cli.options import settings_of
from tests.support.cli_tools import Cli, contents, make_work, widest

pytestmark = pytest.mark.usefixtures("arrow_cache")
QUICK = ("plan", "--sample-seconds", "0.05", "--device", "cpu")


@pytest.fixture
def work(tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_work(tmp_path / "work", tiny("bert"))
    monkeypatch.chdir(folder)
    return folder


def test_plan_prints_tables(cli: Cli, work: Path) -> None:
    before = contents(work)
    result = cli.ok(*QUICK, "--rows", "2_000_000", "--price", "0.4")
    assert widest(result.out) <= 80
    assert contents(work) == before
    assert result.out.startswith("2,000,000 rows, 1 worker on 1 machine: ")
    for row in (
        r"^ time +\S.* to .* measured *$",
        r"^ texts/s +[\d,.]+ +[\d,.]+ to [\d,.]+ measured *$",
        r"^ cost +[\d,.]+ +[\d,.]+ to [\d,.]+ measured *$",
        r"^ sealed cache +346\.0 MB +computed *$",
        r"^ free on that disk +[\d.]+ .B +measured *$",
        r"^ memory of a worker +[\d.]+ .B +measured *$",
        r"^ price of a machine for an hour +0\.40 given *$",
        r"^ texts that are cut +[\d.]+% measured *$",
    ):
        assert re.search(row, result.out, re.MULTILINE), (row, result.out)
    assert re.search(r"^warning: [\d.]+% of the texts are truncated at 16 tokens", result.out, re.MULTILINE)
    assert "encoding for about" in result.err


def test_plan_prints_the_command_that_was_planned(cli: Cli, work: Path) -> None:
    flags = ("--prompt", "it's: ", "--views", "-1/mean,last/cls", "--split", "test", "--split", "train")
    out = cli.ok(*QUICK, *flags).out
    words = shlex.split(out[out.index("featcache extract") :].replace("\\\n", " "))
    args = _parse(words[1:])
    assert args.split == ["test", "train"]
    wanted = load_settings({"prompt": "it's: ", "views": "-1/mean,last/cls", "device": "cpu"})
    assert settings_of(args) == wanted
    (work / "featcache.toml").unlink()  # all that is not the default is said
    assert settings_of(args) == wanted


def test_plan_json_of_a_billion_rows(cli: Cli, work: Path) -> None:
    flags = ("--rows", "1e9", "--gpus", "64", "--rate", "20000", "--price", "2.5", "--shard-size", "10GB")
    result = cli.ok("plan", *flags, "--json")
    made = result.json
    assert made["rows"] == 10**9 and made["gpus"] == made["workers"] == 64 and made["nodes"] == 8
    assert made["seconds"]["value"] > 10**9 / 64 / 20000 / 0.95
    assert made["cost"]["value"] == pytest.approx(2.5 * 64 * made["seconds"]["value"] / 3600)
    assert made["shards"] == -(-made["cache_bytes"] // 10**10) == made["cache_bytes"] // 10**10 + 1
    assert {fact["how"] for fact in made["facts"]} == {"measured", "given", "assumed", "computed"}
    assert made["command"].startswith("torchrun --nnodes 8 --nproc-per-node 8 --no-python featcache extract")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rows", "1.5"), "--rows '1.5' is not a whole number"),
        (("--rows", "many"), "--rows 'many' is not a whole number"),
        (("--rows", "-5"), "--rows '-5' is not a whole number"),
        (("--shard-size", "0"), "--shard-size 0: at least 20kB"),
        (("--gpus", "8"), "says nothing of a GPU"),
        (("--tokens", "100"), "--tokens without --rows"),
        (("--gpus", "8", "--rate", "0"), "--rate 0: must be above 0"),
    ],
)
def test_plan_refuses_invalid_flags(cli: Cli, work: Path, flags: tuple[str, ...], words: str) -> None:
    cli.refused(2, (*QUICK, *flags), words)


def test_plan_without_data_fails_as_extract_does(cli: Cli, work: Path) -> None:
    cli.refused(3, (*QUICK, "--dataset", "nowhere/to.csv"), "nowhere")


def test_command_lines_wraps_a_long_command() -> None:
    words = ["featcache", "extract", *(word for n in range(9) for word in (f"--flag-{n}", f"a value {n}"))]
    lines = command_lines(words, 40)
    assert max(map(len, lines)) <= 42 and len(lines) > 3
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == words


def test_plan_uses_the_shard_size_of_the_settings(cli: Cli, work: Path) -> None:
    Path("featcache.toml").write_text(Path("featcache.toml").read_text().replace('"4GB"', '"500MB"'))
    made = cli.ok("plan", "--rows", "1e8", "--tokens", "20", "--rate", "1000", "--json").json
    assert made["shards"] == -(-made["cache_bytes"] // 500_000_000)
    assert made["command"].count("--shard-size") == 1 and "500MB" in made["command"]


def test_plan_refuses_workers_that_machines_cannot_share(cli: Cli, work: Path) -> None:
    argv = ["plan", "--rows", "1e6", "--tokens", "20", "--rate", "1000", "--nodes", "4", "--workers", "10"]
    cli.refused(2, argv, "10 workers on 4 machines", "12 workers")
