"""The commands, as a user types them: what they print, where, and what they leave behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featcache.settings import Settings, load_settings
from tests.support.cli_tools import (
    Cli,
    contents,
    encoder_is_not_called,
)

SPLITS = ["train", "validation", "test"]
LINEAR, LOGISTIC = "linear-last-cls-1", "logistic-last-mean-1"

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_init_writes_flags_and_keeps_an_existing_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.ok("init").out == ""
    assert load_settings() == Settings()
    before = Path("featcache.toml").read_bytes()
    cli.refused(2, ["init", "--model", "other"], "featcache.toml", "--force")
    assert Path("featcache.toml").read_bytes() == before
    argv = ["--force", "--model", "other", "--pooling", "mean", "--data-files", "train=a.tsv,test=b.tsv"]
    assert cli.ok("init", "--json", *argv).json == {"path": "featcache.toml"}
    settings = load_settings()
    assert settings.backbone.model == "other" and settings.features.views == ("last/mean",)
    assert settings.data.data_files == {"train": "a.tsv", "test": "b.tsv"}
    cli.ok("init", "--force", "--seed", "3")  # a new file holds nothing of the old one
    assert load_settings() == Settings(seed=3)


def test_compare_and_cache_ls_print_json(cli: Cli, trained: Path) -> None:
    document = cli.ok("compare", "--json").json
    assert {run["run"] for run in document["runs"]} == {LINEAR, LOGISTIC}
    assert [run["run"] for run in cli.ok("compare", "--json", LINEAR).json["runs"]] == [LINEAR]
    files = cli.ok("cache", "ls", "--json").json["files"]
    assert {file["split"]: file["rows"] for file in files} == {"train": 60, "validation": 20, "test": 20}
    for file in files:
        assert file["views"] == ["last/cls", "last/mean"] and file["status"] == "sealed"
    info = cli.ok("cache", "info", files[0]["fingerprint"][:6], "--json").json["files"]
    assert [file["path"] for file in info] == [files[0]["path"]]


def test_cache_rm_removes_only_the_named_file(cli: Cli, trained: Path) -> None:
    files = {Path(file["path"]) for file in cli.ok("cache", "ls", "--json").json["files"]}
    gone = next(path for path in files if path.name.startswith("validation"))
    size = gone.stat().st_size
    result = cli.ok("cache", "rm", gone.name, "--json")
    assert result.json == {"removed": [str(gone)], "bytes": size}
    left = {path for path in Path("cache").rglob("*") if path.is_file()}
    assert {path for path in left if path.suffix == ".h5"} == files - {gone}
    assert not [path for path in left if path.stem == gone.stem]  # its record and lock went with it
    again = cli.ok("extract", "--all-splits", "--json").json["splits"]
    assert [split["cached"] for split in again] == [True, False, True]
    cli.ok("cache", "rm", "--all")
    assert cli.ok("cache", "ls", "--json").json == {"files": []}
    assert "extract" in cli.ok("cache", "ls").err


@pytest.mark.parametrize("command", ["compare", "cache info", "predict"])
def test_flags_are_accepted_before_names(command: str, cli: Cli, trained: Path) -> None:
    name = {"compare": LINEAR, "predict": "好"}.get(command) or next(Path("cache").rglob("test-*.h5")).name
    before, after = (cli.ok(*command.split(), *argv) for argv in (["--json", name], [name, "--json"]))
    assert re.sub(r'"age_seconds": [0-9.]+', "", before.out) == re.sub(
        r'"age_seconds": [0-9.]+', "", after.out
    )


def test_run_extracts_trains_and_compares(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = cli.ok("run", "--epochs", "3", "--json").json
    assert [split["split"] for split in document["splits"]] == SPLITS
    made = [(run["head"], run["view"], set(run["metrics"])) for run in document["runs"]]
    depth = "-2/cls,-2/mean,-3/cls,-3/mean,last/cls,last/mean"
    kinds = [(kind, view) for view in ("last/cls", "last/mean") for kind in ("linear", "logistic")]
    kinds = [("lexical", "lexical"), *kinds, ("exact", depth), ("exact", f"{depth},lexical")]
    assert made == [(*kind, set(SPLITS)) for kind in kinds]
    assert {run["run"] for run in cli.ok("compare", "--json").json["runs"]} == {
        run["run"] for run in document["runs"]
    }
    encoder_is_not_called(monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")
    again = cli.ok("run", "--epochs", "3")
    for split in SPLITS:
        assert re.search(rf"^ {split} +\d+ +cached ", again.out, re.MULTILINE)
    for name in ("no-backbone-2", "linear-last-cls-2", "logistic-last-mean-2", "exact-depth-lexical-2"):
        assert name in again.out


def test_read_only_commands_change_no_file(cli: Cli, trained: Path) -> None:
    before = contents(trained)
    for argv in (
        ["compare"],
        ["compare", LINEAR],
        ["cache", "ls"],
        ["cache", "info", "--all"],
        ["predict", "好"],
    ):
        cli.ok(*argv)
    assert contents(trained) == before
