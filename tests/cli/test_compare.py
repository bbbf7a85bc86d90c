"""`featcache compare`: tables that fit, label names as they are, and the best run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.cli_tools import (
    Cli,
    edit_run,
    widest,
    write_rows,
)

LABELS = ["[red]", "[/b]坏", "一个非常非常非常非常非常非常非常长的中文标签"]
SPLITS = ["train", "validation", "test"]
LINEAR, LOGISTIC = "linear-last-cls-1", "logistic-last-mean-1"

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.fixture
def many_runs(trained: Path) -> list[str]:
    """Runs with the numbers of BERT-base on ChnSentiCorp."""
    names = ["linear-last-cls-12", "logistic-last-mean-12", "logistic--4-mean-3"]
    kinds = [("linear", "last/cls"), ("logistic", "last/mean"), ("logistic", "-4/mean")]
    for name, (head, view) in zip(names, kinds, strict=True):
        shutil.copytree(f"reports/{LINEAR}", f"reports/{name}")
        numbers = {"seconds": 12.34, "extraction_seconds": 1234.5, "parameters": 1538, "epochs": 100}
        edit_run(name, head=head, view=view, **numbers)
    shutil.rmtree(f"reports/{LINEAR}")
    shutil.rmtree(f"reports/{LOGISTIC}")
    return names


@pytest.mark.parametrize("columns", [80, 120])
def test_compare_fits_the_terminal_with_full_names(
    columns: int, cli: Cli, many_runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = cli.ok("compare").out
    assert widest(text) <= columns
    assert "…" not in text
    for name in many_runs:
        assert name in text
    for words in ("12.3s", *(("1,538", "1234s", "100") if columns == 120 else ())):
        assert words in text
    one = cli.ok("compare", many_runs[0]).out
    assert widest(one) <= columns and "…" not in one


@pytest.mark.parametrize("count", [3, 10])
def test_compare_prints_label_names_unchanged(count: int, cli: Cli, work: Path) -> None:
    """Brackets are not markup, and long names are not shortened; above 8 classes other tables are shown."""
    names = LABELS + [f"[bold]{number}" for number in range(count - 3)]
    for number, split in enumerate(SPLITS):
        rows = [(f"{'好坏差'[i % 3]}房间{'书' * (i + number)}", names[i % count]) for i in range(4 * count)]
        write_rows(Path(f"odd/{split}.jsonl"), rows)
    where = ["--dataset", "odd"]
    cli.ok("extract", "--all-splits", *where)
    run = cli.ok("train-head", "--epochs", "3", "--json", *where).json
    assert sorted(run["label_names"]) == sorted(names)
    cli.ok("train-head", "--epochs", "3", *where)
    text = cli.ok("compare", run["run"]).out
    assert widest(text) <= 80
    classes, confusion = text.split("class (test)")[1].split("true", 1)
    for name in names:
        assert name in classes, (name, classes)
    if count == 3:
        for name in names:
            assert re.search(rf"^ {re.escape(name)} +\d", confusion, re.MULTILINE), (name, confusion)
        assert "[red]" in confusion.splitlines()[0] and "[/b]坏" in confusion.splitlines()[0]
    else:
        record = json.loads(Path("reports", run["run"], "run.json").read_text(encoding="utf-8"))
        wrong = record["scores"]["test"]["confusion"]
        worst = max((n, i, j) for i, row in enumerate(wrong) for j, n in enumerate(row) if i != j)
        assert run["label_names"][worst[1]] in confusion and run["label_names"][worst[2]] in confusion
    found = cli.ok("predict", "好房间", "--json").json[0]
    assert set(found["probabilities"]) == set(names)
    line = cli.ok("predict", "好房间").out.split("\t")
    assert line[0] == found["label"] in names
    file = next(Path("cache").glob("odd/*/train-*.h5")).name
    assert cli.ok("cache", "info", file, "--json").json["files"][0]["label_names"] == run["label_names"]
    shown = cli.ok("cache", "info", file).out
    assert widest(shown) <= 80 and all(name in shown.replace("\n             ", "") for name in names), shown


def test_compare_numbers_confusion_columns_with_equal_names(cli: Cli, work: Path) -> None:
    names = ["neutral-positive", "neutral-possible", "neutral-negative"]
    for split in SPLITS:
        write_rows(Path(f"odd/{split}.jsonl"), [("好坏差"[i % 3] * (i + 1), names[i % 3]) for i in range(12)])
    cli.ok("extract", "--all-splits", "--dataset", "odd")
    run = cli.ok("train-head", "--epochs", "2", "--json", "--dataset", "odd").json["run"]
    matrix = cli.ok("compare", run).out.partition("true \\ predicted")[2]
    head = matrix.splitlines()[0].split()
    assert len(head) == len(set(head)) == 3, head


def scores(accuracy: float, loss: float = 0.5) -> dict[str, float]:
    return {"accuracy": accuracy, "macro_f1": accuracy, "log_loss": loss}


@pytest.mark.parametrize(
    ("linear", "logistic", "best"),
    [
        ((0.90, 0.5, 0.10), (0.80, 0.1, 0.99), LINEAR),  # never by test
        ((0.80, 0.1, 0.99), (0.90, 0.5, 0.10), LOGISTIC),
        ((0.90, 0.3, 0.10), (0.90, 0.2, 0.05), LOGISTIC),  # a tie: by validation loss
        ((0.90, 0.2, 0.10), (0.90, 0.3, 0.95), LINEAR),
    ],
)
def test_the_best_run_is_the_best_on_validation(
    linear: tuple[float, ...], logistic: tuple[float, ...], best: str, cli: Cli, trained: Path
) -> None:
    for name, (accuracy, loss, test) in ((LINEAR, linear), (LOGISTIC, logistic)):
        edit_run(name, metrics={"validation": scores(accuracy, loss), "test": scores(test)})
    assert cli.ok("compare", "--json").json["best"] == best
    marked = [line for line in cli.ok("compare").out.splitlines() if LINEAR in line or LOGISTIC in line]
    assert [("*" in line.split()[0], best in line) for line in marked] == [(True, True), (False, False)]
    assert f"using {best} " in cli.ok("predict", "好").err
