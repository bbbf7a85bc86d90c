"""`featcache sweep`: the grid, the choice on validation, the saved run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

import featcache
from featcache.errors import UsageError
from featcache.heads.scorers import Linear
from featcache.runs.record import Trial
from featcache.runs.sweep import Grid, _Search, parse_values
from tests.support.cli_tools import Cli

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0.01", (0.0, 0.01)),
        ("1e-3", (1e-3,)),
        ("1e-4..1e-1:4", (1e-4, 1e-3, 1e-2, 1e-1)),
        ("1,1e-2..1:3,1", (1.0, 0.01, 0.1)),
    ],
)
def test_parse_values(text: str, expected: tuple[float, ...]) -> None:
    assert parse_values(text) == pytest.approx(expected)


def test_parse_values_of_a_range_are_seven_with_both_ends() -> None:
    values = parse_values("1e-4..1e-1")
    assert len(values) == 7 and (values[0], values[-1]) == (1e-4, 1e-1)
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert ratios == pytest.approx([ratios[0]] * 6, rel=1e-4)


@pytest.mark.parametrize(
    "text", ["", "a", "1..", "0..1", "2..1", "1..2:1", "1..2:x", "nan", "-1", "inf", "1,,2"]
)
def test_parse_values_refuses_what_is_no_number(text: str) -> None:
    with pytest.raises(UsageError):
        parse_values(text)


def test_sweep_keeps_the_best_by_validation(cli: Cli, trained: Path) -> None:
    before = len(list(Path("reports").iterdir()))
    made = cli.ok(
        "sweep",
        "--lr",
        "1e-3,1e-1",
        "--weight-decay",
        "0,0.01",
        "--seeds",
        "2",
        "--epochs",
        "5",
        "--view",
        "last/cls",
        "--json",
    ).json
    assert made["heads"] == len(made["trials"]) == 8
    ranks = [(trial["validation_accuracy"], -trial["validation_loss"]) for trial in made["trials"]]
    assert ranks == sorted(ranks, reverse=True)
    best, first = made["best"], made["trials"][0]
    assert len(list(Path("reports").iterdir())) == before + 1
    assert best["metrics"]["validation"]["accuracy"] == pytest.approx(first["validation_accuracy"])
    saved = json.loads(Path("reports", best["run"], "run.json").read_text())
    assert saved["settings"]["lr"] == first["lr"]
    assert saved["settings"]["weight_decay"] == first["weight_decay"]
    assert saved["sweep"]["heads"] == 8
    assert "test" in best["metrics"] and not any("test" in key for key in first)
    text = cli.ok("sweep", "--lr", "1e-3,1e-2", "--epochs", "2").out
    assert (
        "8 heads" in text
        and "views by their best validation accuracy: last/" in text
        and "best first by validation" in text
    )
    assert max(map(len, text.splitlines())) <= 80


def test_sweep_of_one_head_equals_train_head(cli: Cli, trained: Path) -> None:
    flags = (
        "--epochs",
        "4",
        "--lr",
        "0.01",
        "--weight-decay",
        "0.1",
        "--seed",
        "3",
        "--view",
        "last/cls",
        "--json",
    )
    swept, alone = cli.ok("sweep", *flags).json["best"], cli.ok("train-head", *flags).json
    assert swept["metrics"] == alone["metrics"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lr", "x"), "'x' is no number"),
        (("--seeds", "0"), "--seeds 0"),
        (("--class-weight", "heavy"), "--class-weight heavy"),
        (("--lr", "1e-4..1e-1:4000", "--seeds", "9", "--view", "last/cls"), "72,000 heads"),
        (("--label-smoothing", "1"), "--label-smoothing"),
    ],
)
def test_sweep_refuses_an_empty_or_huge_grid(
    flags: tuple[str, ...], words: str, cli: Cli, trained: Path
) -> None:
    assert words in cli.refused(2, ["sweep", *flags], words).err


def test_a_blend_is_kept_where_validation_is_better_for_it(cli: Cli, trained: Path) -> None:
    asked = ("sweep", "--lr", "1e-4..1e-1:4", "--seeds", "3", "--epochs", "4", "--view", "last/cls")
    alone = cli.ok(*asked, "--json").json
    made = cli.ok(*asked, "--blend", "6", "--json").json
    assert made["trials"] == alone["trials"]
    best, other = made["best"]["metrics"]["validation"], alone["best"]["metrics"]["validation"]
    assert (best["accuracy"], -best["log_loss"]) >= (other["accuracy"], -other["log_loss"])
    assert 2 <= made["best"]["solver"]["blended_heads"] <= 6
    run = featcache.load_run(Path("reports"), made["best"]["run"])
    assert isinstance(run.head().scorer, Linear)
    assert "kept: the mean of" in cli.ok(*asked, "--blend", "6").out
    assert "blended_heads" not in cli.ok(*asked, "--blend", "1", "--json").json["best"]["solver"]


def test_subsets_of_the_views_are_swept(cli: Cli, trained: Path) -> None:
    asked = ("sweep", "--lr", "1e-3,1e-2", "--weight-decay", "0", "--epochs", "2", "--json")
    every = cli.ok(*asked, "--subsets", "all").json
    views = {"last/cls", "last/mean", "last/cls,last/mean"}
    assert {trial["view"] for trial in every["trials"]} == set(every["best_by_view"]) == views
    assert every["heads"] == 6
    greedy = cli.ok(*asked, "--subsets", "greedy").json
    assert greedy["trials"] == every["trials"]  # of two views they are the same
    both = every["best_by_view"]["last/cls,last/mean"]
    alone = cli.ok(
        "train-head", "--view", "last/cls,last/mean", "--epochs", "2", "--lr", str(both["lr"]),
        "--weight-decay", str(both["weight_decay"]), "--json",
    ).json  # fmt: skip
    assert alone["metrics"]["validation"]["accuracy"] == pytest.approx(both["validation_accuracy"])


def test_greedy_adds_views_while_validation_gets_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up scores: a and b together are best; c is worth nothing, and all three are worse."""
    worth = {"a": 3, "b": 2, "c": 1, "a,b,c": 4, "a,b": 6, "a,c": 3, "b,c": 2}
    rounds: list[list[str]] = []
    search = _Search.__new__(_Search)
    search.grid, search.cached = (
        Grid((0.1,), (0.0,), (0.0,), ("none",), ("a", "b", "c"), 1, subsets="greedy"),
        [*"abc"],
    )

    def trained(self: _Search, views: list[str]) -> list[tuple[Trial, None]]:
        rounds.append(views)
        trials = [Trial(view, 0.1, 0.0, 0.0, "none", None, 1, worth[view] / 10, 1.0) for view in views]
        return sorted(((trial, None) for trial in trials), key=lambda pair: pair[0].rank, reverse=True)

    monkeypatch.setattr(_Search, "round", trained)
    assert search.run()[0][0].view == "a,b"
    assert rounds == [["a", "b", "c", "a,b,c"], ["a,b", "a,c"]]  # all three were tried at once
    rounds.clear()
    worth["a,b"] = 3
    assert search.run()[0][0].view == "a,b,c" and len(rounds) == 2


def test_words_are_added_to_the_best_head_of_a_sweep(cli: Cli, trained: Path) -> None:
    asked = ("sweep", "--lr", "1e-4", "--weight-decay", "0", "--epochs", "1", "--view", "last/cls,lexical")
    made = cli.ok(*asked, "--json").json
    assert made["best"]["view"] == "last/cls,lexical" and made["heads"] == 1
    assert "factor_of_words" in made["best"]["solver"]
    assert {trial["view"] for trial in made["trials"]} == {"last/cls"}
    assert "the words of the texts are beside it" in cli.ok(*asked).out


def test_too_many_subsets_are_refused(cli: Cli, trained: Path) -> None:
    with pytest.raises(UsageError, match="a sweep of 1,048,575 heads"):
        Grid((0.1,), (0.0,), (0.0,), ("none",), ("a",), 1, subsets="all").check(20)
    cli.refused(2, ["sweep", "--subsets", "some"], "--subsets")
