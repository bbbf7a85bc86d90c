"""`featcache curve`: what it prints, what it leaves, what it refuses; the plot in characters."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from featcache.runs import curve_fits as module
from featcache_cli.console import Mark, plot
from tests.support.cli_tools import Cli, widest

pytestmark = pytest.mark.usefixtures("arrow_cache")


def curves() -> list[Path]:
    return sorted(Path("reports").glob("curve-*/curve.json"))


def test_curve_prints_table_plot_and_sentences(cli: Cli, trained: Path) -> None:
    runs = cli.ok("compare", "--json").json
    result = cli.ok("curve", "--points", "5", "--seeds", "3")
    assert widest(result.out) <= 80
    lines = [line for line in result.out.splitlines() if line.strip()]
    assert re.match(r"exact head on last/cls, test accuracy, 3 seeds, \d", lines[0])
    assert re.match(r" *rows accuracy +95 % interval +sd per doubling", lines[1])
    (path,) = curves()
    saved = json.loads(path.read_text(encoding="utf-8"))
    for point in saved["points"]:
        ends = f"{100 * point['low']:.2f} to {100 * point['high']:.2f}"
        row = rf"^ +{point['rows']} +{100 * point['score']:.2f} +{ends} +"
        assert re.search(row, result.out, re.MULTILINE), row
    assert [point["rows"] for point in saved["points"]] == [10, 16, 24, 38, 60]
    for times, rows, one in zip(
        ("twice", "four times", "ten times"), (120, 240, 600), saved["outlook"]["forecasts"], strict=True
    ):
        gain, low, high = (100 * one[name] for name in ("gain", "gain_low", "gain_high"))
        said = f"{times} the labels ({rows} rows) would bring {gain:+.2f} points [{low:.2f}, {high:.2f}]"
        assert said in result.out
    assert "This is an extrapolation" in result.out
    for doubt in saved["outlook"]["doubts"]:
        assert doubt.split(":")[0] in " ".join(result.out.split())
    assert "●" in result.out and "○" in result.out
    assert f"saved in {path.parent}" in result.err
    assert cli.ok("compare", "--json").json == runs  # a curve is no run


def test_curve_json(cli: Cli, trained: Path) -> None:
    flags = ("--sizes", "40,10,40", "--seeds", "2", "--metric", "macro_f1", "--view", "last/mean")
    result = cli.ok("curve", *flags, "--head", "ridge", "--json", "--quiet")
    assert result.err == ""
    made = result.json
    assert (made["kind"], made["view"], made["metric"]) == ("ridge", "last/mean", "macro_f1")
    assert (made["split"], [point["rows"] for point in made["points"]]) == ("test", [10, 40])
    assert made["outlook"]["forecasts"] == [] and "too few" in made["outlook"]["doubts"][0]
    (path,) = curves()
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert made == {key: value for key, value in saved.items() if key != "request"}
    again = cli.ok("curve", *flags, "--head", "ridge", "--json").json
    assert again | {"seconds": 0} == made | {"seconds": 0} and curves() == [path]
    shown = cli.ok("curve", *flags, "--head", "ridge").out
    assert "No extrapolation:" in shown and "would bring" not in shown and "macro F1" in shown


def test_curve_with_one_size_and_one_seed(cli: Cli, trained: Path) -> None:
    result = cli.ok("curve", "--sizes", "60", "--seeds", "1", "--C", "0.1")
    assert "1 seed, " in result.out and widest(result.out) <= 80
    made = cli.ok("curve", "--sizes", "60", "--seeds", "1", "--C", "0.1", "--json").json
    head = cli.ok("train-head", "--head", "exact", "--C", "0.1", "--json").json
    assert made["points"][0]["score"] == head["metrics"]["test"]["accuracy"]
    assert made["points"][0]["deviation"] is None and made["points"][0]["penalties"] == [0.1]


def test_curve_at_all_rows_equals_train_head(cli: Cli, trained: Path) -> None:
    flags = ("--head", "linear", "--epochs", "3", "--seed", "4", "--json")
    made = cli.ok("curve", "--sizes", "60", "--seeds", "1", *flags).json
    assert made["points"][0]["score"] == cli.ok("train-head", *flags).json["metrics"]["test"]["accuracy"]


def test_without_a_test_split(cli: Cli, trained: Path) -> None:
    for path in Path("cache").rglob("test-*"):
        path.unlink()
    result = cli.ok("curve", "--points", "2", "--seeds", "1")
    assert "validation accuracy" in result.out.splitlines()[0]
    assert "no cached test split" in result.err and "too high" in result.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sizes", "10,61"), "train has 60 rows"),
        (("--sizes", "10,x"), "whole numbers"),
        (("--sizes", ""), "whole numbers"),
        (("--sizes", "-5"), "--sizes"),
        (("--sizes", "10", "--points", "3"), "cannot be given together"),
        (("--points", "0"), "--points 0"),
        (("--seeds", "0"), "--seeds 0"),
        (("--head", "ridge", "--C", "1"), "not for the ridge head"),
        (("--C", "much"), "'much' is no number"),
        (("--C", "0"), "numbers from"),
        (("--metric", "ece"), "ece"),
    ],
)
def test_curve_refuses_invalid_flags(flags: tuple[str, ...], words: str, cli: Cli, trained: Path) -> None:
    cli.refused(2, ["curve", *flags], words)


def test_curve_names_missing_features(cli: Cli, trained: Path) -> None:
    cli.refused(5, ["curve", "--prompt", "query: "], "featcache extract")


def test_curve_continues_after_an_interrupt(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("curve", "--points", "3", "--seeds", "2", "--json")
    whole = cli.ok(*flags).json
    shutil.rmtree(Path(whole["folder"]))
    calls, score_all = [0], module.bootstrap_metrics

    def stop_at_the_fourth(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return score_all(*args, **more)

    monkeypatch.setattr(module, "bootstrap_metrics", stop_at_the_fourth)
    stopped = cli(*flags)
    assert stopped.code == 130 and stopped.out == "" and curves() == []
    assert cli.ok(*flags).json | {"seconds": 0} == whole | {"seconds": 0}
    assert calls[0] == 4 + 2  # three fits were kept; of six, both seeds share that of all rows


# ---------------------------------------------------------------- the plot


MARKS = [Mark(10, 0.6, 0.5, 0.7), Mark(100, 0.8, 0.75, 0.85), Mark(1000, 0.9, 0.88, 0.92, "beyond")]


def test_plot_places_points() -> None:
    lines = plot(MARKS, [], width=70, height=11)
    assert len(lines) == 12 and max(map(len, lines)) <= 70
    columns = [line[8:].ljust(62) for line in lines[:-1]]
    found = [(row, line.index(sign)) for sign in "●○" for row, line in enumerate(columns) if sign in line]
    top, step = 0.92, 0.42 / 10
    assert found[2] == (round((top - 0.9) / step), 61)
    assert found[0] == (round((top - 0.8) / step), pytest.approx(61 / 2, abs=0.5))
    assert found[1] == (round((top - 0.6) / step), 0)
    assert lines[0].startswith(" 92.00 ┤") and lines[10].startswith(" 50.00 ┤")
    bar = [row for row, line in enumerate(columns) if line[0] in "│●"]
    assert (bar[0], bar[-1]) == (round((top - 0.7) / step), 10)
    assert re.fullmatch(r" {8}10 +100 +1,000", lines[-1])


def test_plot_draws_the_line_under_the_marks() -> None:
    lines = plot(MARKS, [(10, 0.6), (30, 0.7), (300, 2.0), (1e9, -1.0)], width=40, height=8)
    assert sum(line.count("·") for line in lines) == 3
    assert sum(line.count("●") for line in lines) == 2 and max(map(len, lines)) <= 40


@pytest.mark.parametrize("width", [1, 20, 80])
@pytest.mark.parametrize("marks", [MARKS[:1], [Mark(5, 1.0, 1.0, 1.0)], [Mark(9, 0.0, 0.0, 1.0)] * 2])
def test_plot_of_few_marks(marks: list[Mark], width: int) -> None:
    lines = plot(marks, [], width=width)
    assert sum(line.count("●") for line in lines) == 1
    assert max(map(len, lines)) <= max(width, 18)


@pytest.mark.parametrize(("score", "top", "bottom"), [(1.0, "100.00", " 99.90"), (0.0, "  0.10", "  0.00")])
def test_the_axis_of_a_flat_curve_stays_between_0_and_100(score: float, top: str, bottom: str) -> None:
    lines = plot([Mark(10, score, score, score), Mark(99, score, score, score)], [], height=5)
    assert lines[0].startswith(f"{top} ┤") and lines[4].startswith(f"{bottom} ┤")


def test_plot_on_an_ascii_terminal() -> None:
    text = "\n".join(plot(MARKS, [(30, 0.7)], encoding="ascii"))
    assert text.isascii() and text.count("o") == 2 and text.count("x") == 1 and "." in text
    assert plot(MARKS, [], encoding="gb18030") == plot(MARKS, [])
