"""`featcache runs`, and `--name` of a new run: listed, shown, renamed and removed, nothing replaced."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from featcache.errors import HeadError
from featcache.runs.run import list_runs, load_run, remove_run, rename_run
from tests.support.cli_tools import Cli, Terminal, contents, make_trained
from tests.support.saved_runs import predictions, save

REPORTS = Path("reports")


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the runs `linear-last-mean-1` and `mlp-last-mean-1`."""
    monkeypatch.chdir(tmp_path)
    for head in ("linear", "mlp"):
        save(REPORTS, head, validation=predictions([0, 1], [0, 1]), test=predictions([0, 1], [0, 0]))


@pytest.mark.usefixtures("two")
def test_runs_are_listed_and_shown(cli: Cli) -> None:
    text = cli.ok("runs", "ls").out
    assert "linear-last-mean-1" in text and "100.00 50.00" in text and "in %" in text
    assert [run["run"] for run in cli.ok("runs", "ls", "--json").json["runs"]] == [
        "mlp-last-mean-1", "linear-last-mean-1",
    ]  # fmt: skip
    shown = cli.ok("runs", "show", "mlp-last-mean-1")
    assert "50.00" in shown.out and "reports/mlp-last-mean-1" in shown.out
    cli.refused(6, ["runs", "show", "mpl-last-mean-1"], "did you mean mlp-last-mean-1")


@pytest.mark.usefixtures("two")
def test_a_run_is_renamed_and_nothing_is_replaced(cli: Cli) -> None:
    before = contents(REPORTS)
    cli.refused(6, ["runs", "rename", "linear-last-mean-1", "mlp-last-mean-1"], "exists already")
    for name in ("", ".hidden", "a/b", "../out", "a b"):
        cli.refused(6, ["runs", "rename", "linear-last-mean-1", name], "no name for a run")
    assert contents(REPORTS) == before
    assert cli.ok("runs", "rename", "linear-last-mean-1", "基线", "--json").json["run"] == "基线"
    run = load_run(REPORTS, "基线")
    assert run.record.run == "基线" and len(run.predictions("test")) == 2
    assert not (REPORTS / "linear-last-mean-1").exists()


@pytest.mark.usefixtures("two")
def test_runs_are_removed_if_the_user_agrees(cli: Cli) -> None:
    cli.refused(2, ["runs", "rm", "linear-last-mean-1"], "--yes")
    with Terminal("runs", "rm", "linear-last-mean-1") as terminal:
        terminal.read_until("[y/N]")
        terminal.type("n\n")
        assert terminal.finish() == 0
    assert len(list_runs(REPORTS)) == 2
    found = cli.ok("runs", "rm", "linear-last-mean-1", "--yes", "--json").json["removed"]
    assert [one["run"] for one in found] == ["linear-last-mean-1"] and found[0]["bytes"] > 0
    assert [run.name for run in list_runs(REPORTS)] == ["mlp-last-mean-1"]
    assert [path.name for path in REPORTS.iterdir() if path.is_dir()] == ["mlp-last-mean-1"]
    cli.ok("runs", "rm", "mlp-last-mean-1", "--yes")
    cli.refused(6, ["runs", "ls"], "no runs in reports", "train-head")


@pytest.mark.usefixtures("two")
def test_of_many_renames_to_one_name_one_is_done() -> None:
    runs, done, refused = list_runs(REPORTS), [], []
    gate = threading.Barrier(len(runs))

    def rename(number: int) -> None:
        gate.wait()
        try:
            done.append(rename_run(runs[number], "mine").name)
        except HeadError as error:
            refused.append(error.what)

    threads = [threading.Thread(target=rename, args=(number,)) for number in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == ["mine"] and len(refused) == 1 and "exists already" in refused[0]
    assert len(list_runs(REPORTS)) == 2


@pytest.mark.usefixtures("two")
def test_a_run_that_has_gone_is_said() -> None:
    run = load_run(REPORTS, "mlp-last-mean-1")
    remove_run(run)
    for change in (remove_run, lambda gone: rename_run(gone, "other")):
        with pytest.raises(HeadError, match="has gone"):
            change(run)


def test_a_new_run_has_the_name_that_was_asked_for(
    tmp_path: Path, tiny: object, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_trained(tmp_path, tiny("bert")))  # type: ignore[operator]
    made = cli.ok("train-head", "--epochs", "2", "--name", "first", "--json").json
    assert made["run"] == "first" and json.loads(Path("reports/first/run.json").read_text())["run"] == "first"
    cli.refused(6, ["train-head", "--epochs", "2", "--name", "first"], "reports/first exists already")
    assert cli.ok("sweep", "--lr", "0.01", "--name", "second", "--json").json["best"]["run"] == "second"
    cli.refused(6, ["blend", "first", "second", "--name", "second"], "reports/second exists already")
