"""`train-head --head auto`, `--rows-per-class`, and the recipes side by side in `curve`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from featcache.runs.run import list_runs
from tests.support.cli_tools import Cli, widest

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_auto_says_what_it_chose_and_predicts(cli: Cli, trained: Path) -> None:
    result = cli.ok("train-head", "--head", "auto", "--rows-per-class", "8", "--no-contrastive")
    said = " ".join(result.out.split())
    assert "16 train rows: " in said and "by cross-validation" in said and "--head KIND --view VIEW" in said
    assert "featcache finetune --objective contrastive" in said  # of so few rows
    (run,) = [one for one in list_runs(Path("reports")) if "recipe" in one.record.solver]
    solver = run.record.solver
    assert solver["recipe"] in solver["recipe_accuracy"] and solver["folds"] == 5
    assert run.record.rows["train"] == 16
    assert run.record.head == "ridge" and run.record.settings["alpha"] > 1
    answer = cli.ok("predict", "--run", run.name, "--json", "很好").json
    assert answer


def test_auto_chooses_among_the_views_asked_for(cli: Cli, trained: Path) -> None:
    made = cli.ok("train-head", "--head", "auto", "--no-contrastive", "--view", "last/mean", "--json").json
    assert made["view"] == "last/mean" and made["rows"]["train"] == 60
    assert set(made["solver"]["recipe_accuracy"]) == {"ridge on last/mean", "weaker ridge on last/mean"}
    every = cli.ok("train-head", "--head", "auto", "--no-contrastive", "--json").json
    assert any(name.startswith("ridge on 2 ") for name in every["solver"]["recipe_accuracy"])


def test_rows_per_class_of_any_head_are_those_of_the_seed(cli: Cli, trained: Path) -> None:
    flags = ("train-head", "--head", "ridge", "--view", "last/mean", "--json")
    one, two, other = (
        cli.ok(*flags, "--rows-per-class", "5", "--seed", seed).json for seed in ("0", "0", "1")
    )
    assert one["rows"]["train"] == 10 and one["metrics"] == two["metrics"] != other["metrics"]
    assert cli.ok(*flags, "--rows-per-class", "500").json["metrics"] == cli.ok(*flags).json["metrics"]
    words = cli.ok("train-head", "--head", "lexical", "--rows-per-class", "5", "--json").json
    assert words["rows"]["train"] == 10


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--head", "auto", "--view", "lexical"), "lexical is in no cache"),
        (("--head", "auto", "--workers", "2"), "--head auto is for few labels"),
        (("--rows-per-class", "0"), "--rows-per-class 0"),
        (("--rows-per-class", "4", "--workers", "2"), "one worker"),
        (("--head", "auto", "--rows-per-class", "0"), "--rows-per-class 0"),
    ],
)
def test_flags_that_cannot_be_meant(flags: tuple[str, ...], words: str, cli: Cli, trained: Path) -> None:
    cli.refused(2, ["train-head", *flags], words)


def test_one_row_a_class_names_a_head(cli: Cli, trained: Path) -> None:
    cli.refused(6, ["train-head", "--head", "auto", "--rows-per-class", "1"], "--head centroid")


def test_curve_shows_recipes_side_by_side(cli: Cli, trained: Path) -> None:
    flags = ("curve", "--rows-per-class", "8,4", "--seeds", "2", "--no-contrastive")
    result = cli.ok(*flags)
    assert widest(result.out) <= 80
    made = cli.ok(*flags, "--json").json
    names = list(dict.fromkeys(one["recipe"] for one in made["scores"]))
    assert names[-1] == "chosen by cross-validation" and len(names) >= 4
    for name in names:
        assert name in result.out
        scores = [one for one in made["scores"] if one["recipe"] == name]
        assert [(one["rows_per_class"], one["rows"]) for one in scores] == [(4, 8), (8, 16)]
        assert all(one["accuracy"] == np.mean(one["accuracies"]) for one in scores)
    for size in (4, 8):
        at = [one for one in made["scores"] if one["rows_per_class"] == size]
        assert sum(one["chosen"] for one in at[:-1]) == at[-1]["chosen"] == 2
    saved = json.loads((Path(made["folder"]) / "recipes.json").read_text(encoding="utf-8"))
    assert saved["scores"] == made["scores"]
    # The chosen recipe on one seed is what `train-head --head auto` trains.
    alone = ("train-head", "--head", "auto", "--no-contrastive", "--rows-per-class", "8", "--json")
    auto = cli.ok(*alone).json
    chosen = next(one for one in made["scores"] if one["recipe"] == names[-1] and one["rows_per_class"] == 8)
    assert chosen["accuracies"][0] == auto["metrics"]["test"]["accuracy"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sizes", "10"), "--sizes and --rows-per-class"),
        (("--head", "ridge"), "--head and --rows-per-class"),
        (("--metric", "macro_f1"), "scores accuracy"),
        (("--seeds", "0"), "at least one"),
    ],
)
def test_curve_flags_that_do_not_fit(flags: tuple[str, ...], words: str, cli: Cli, trained: Path) -> None:
    cli.refused(2, ["curve", "--rows-per-class", "4", *flags], words)


def test_recipes_without_a_test_split_are_scored_on_validation(cli: Cli, trained: Path) -> None:
    for path in Path("cache").rglob("test-*"):
        path.unlink()
    flags = ("curve", "--rows-per-class", "4", "--seeds", "1", "--no-contrastive")
    assert cli.ok(*flags, "--json").json["split"] == "validation"
