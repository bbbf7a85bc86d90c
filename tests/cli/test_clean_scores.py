"""Scores without leaked rows beside the whole ones, in every command that shows scores."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featcache_cli.main import main
from tests.support.cli_tools import (
    Cli,
    arrow_in,
    edit_run,
    make_work,
    plain_terminal,
    read_rows,
    widest,
    write_rows,
)

SENTENCE = "3 of 33 validation rows and 6 of 36 test rows leak: an earlier split has their text."
RUNS = ("linear-last-cls-1", "centroid-last-cls-1")


@pytest.fixture(scope="module")
def work(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on reviews of which 3 validation rows and 6 test rows leak."""
    folder = tmp_path_factory.mktemp("clean")
    make_work(folder / "work", tiny("bert"), rows=90, views="last/cls")
    with arrow_in(folder / "arrow"), contextlib.chdir(folder / "work"):
        train = [(row["text"], row["label"]) for row in read_rows("reviews/train.jsonl")]
        for split, count in (("validation", 3), ("test", 6)):
            rows = [(row["text"], row["label"]) for row in read_rows(f"reviews/{split}.jsonl")]
            write_rows(Path(f"reviews/{split}.jsonl"), [*train[:count], *rows])
        assert main(["extract", "--all-splits", "--quiet"]) == 0
        assert main(["train-head", "--epochs", "3", "--quiet"]) == 0
        assert main(["train-head", "--head", "centroid", "--quiet"]) == 0
    return folder / "work"


@pytest.fixture
def cli(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Cli]:
    plain_terminal(monkeypatch)
    with arrow_in(tmp_path / "arrow"), contextlib.chdir(work):
        yield Cli(capsys)


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def test_train_head_and_sweep_show_both_scores(cli: Cli, tmp_path: Path) -> None:
    for command in (["train-head", "--head", "ridge"], ["sweep", "--lr", "1e-3,1e-2", "--epochs", "2"]):
        shown = cli.ok(*command, "--reports-dir", tmp_path)
        said = " ".join(shown.out.split())
        assert SENTENCE in said and "featcache inspect" in said and "chosen on clean rows" in said
        assert said.count(" clean ") >= 3 and widest(shown.out) <= 80
        found = cli.ok(*command, "--reports-dir", tmp_path, "--json").json
        clean = found.get("best", found)["clean"]
        assert (clean["rule"], clean["leaked"]) == ("normalised text", {"validation": 3, "test": 6})
        assert percent(clean["metrics"]["test"]["accuracy"]) in shown.out
        assert set(clean["intervals"]["test"]) == set(clean["metrics"]["test"])


def test_compare_shows_both_scores_and_both_tests(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, times in ((80, 2), (120, 3)):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = cli.ok("compare", *RUNS)
        assert widest(shown.out) <= columns and shown.out.splitlines()[1].split().count("clean") == times
        assert "best by clean validation accuracy" in shown.out and "30 clean rows" in shown.out
    document = cli.ok("compare", *RUNS, "--json").json
    (made,) = document["comparisons"]
    assert made["rows"] == 36 and made["clean"]["rows"] == 30
    metrics = {run["run"]: run["clean"]["metrics"]["test"] for run in document["runs"]}
    for name in ("accuracy", "macro_f1"):
        assert made["clean"][name]["run"] == pytest.approx(metrics[made["run"]][name])
        assert made["clean"][name]["base"] == pytest.approx(metrics[document["base"]][name])


def test_the_best_run_is_the_best_on_clean_validation_rows(cli: Cli, tmp_path: Path) -> None:
    shutil.copytree("reports", tmp_path / "reports")
    with contextlib.chdir(tmp_path):
        for name, whole, clean in ((RUNS[0], 0.9, 0.5), (RUNS[1], 0.8, 0.7)):
            record = json.loads(Path(f"reports/{name}/run.json").read_bytes())
            record["metrics"]["validation"]["accuracy"] = whole
            record["clean"]["metrics"]["validation"]["accuracy"] = clean
            edit_run(name, metrics=record["metrics"], clean=record["clean"])
        assert cli.ok("compare", "--json").json["best"] == RUNS[1]
        edit_run(RUNS[0], clean=None)  # a run of an earlier version: all are compared on all rows
        document = cli.ok("compare", "--json").json
        assert document["best"] == RUNS[0]
        assert {run["run"]: bool(run["clean"]) for run in document["runs"]} == {RUNS[0]: False, RUNS[1]: True}


def test_report_shows_both_scores(cli: Cli) -> None:
    shown = cli.ok("report", *RUNS)
    record = json.loads(Path(f"reports/{RUNS[0]}/run.json").read_bytes())
    accuracy = record["clean"]["metrics"]["test"]["accuracy"]
    assert "test rows that do not leak" in " ".join(shown.out.split()) and percent(accuracy) in shown.out
    page, text = (Path(f"reports/{RUNS[0]}/report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    for said in (page, text, " ".join(shown.out.split())):
        assert "have a text that an earlier split has" in said and "trust the clean scores" in said
    assert f"clean {percent(accuracy)}\u00a0%, 95" in page and "; clean tie" in page
    assert f"clean {percent(accuracy)} %, 95" in text and "; clean tie" in text
    document = json.loads(Path(f"reports/{RUNS[0]}/report.json").read_bytes())
    assert document["headline"]["accuracy"]["clean"] == pytest.approx(accuracy, rel=1e-6)
    assert document["comparisons"][0]["clean_accuracy"]["tie"] in (True, False)


def test_curve_shows_the_scores_of_a_test_split_without_the_leaked_rows(cli: Cli, tmp_path: Path) -> None:
    argv = ("curve", "--sizes", "20,90", "--seeds", "2", "--reports-dir", tmp_path)
    shown = cli.ok(*argv)
    assert "clean: without the 6 test rows" in " ".join(shown.out.split()) and widest(shown.out) <= 80
    with_leaks = cli.ok(*argv, "--json").json
    rows = {split: read_rows(f"reviews/{split}.jsonl") for split in ("validation", "test")}
    try:
        for split, count in (("validation", 3), ("test", 6)):
            kept = [(row["text"], row["label"]) for row in rows[split][count:]]
            write_rows(Path(f"reviews/{split}.jsonl"), kept)
        cli.ok("extract", "--all-splits", "--quiet")
        without = cli.ok(*argv, "--json").json
    finally:
        for split, whole in rows.items():
            write_rows(Path(f"reviews/{split}.jsonl"), [(row["text"], row["label"]) for row in whole])
    assert with_leaks["leaked"] == 6 and without["leaked"] == 0
    for one, two in zip(with_leaks["points"], without["points"], strict=True):
        assert one["clean"]["score"] == pytest.approx(two["score"]) and two["clean"] is None
        assert (one["clean"]["low"], one["clean"]["high"]) == pytest.approx((two["low"], two["high"]))


def test_the_card_of_an_export_has_both_scores(cli: Cli, tmp_path: Path) -> None:
    cli.ok("export", RUNS[0], "--output", tmp_path / "model", "--quiet")
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert SENTENCE in card and "| test, clean rows | " in card and "| validation, clean rows | " in card
