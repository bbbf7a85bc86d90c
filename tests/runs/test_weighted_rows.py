"""`--weight-column` and `--class-weight` by name, from the files to the heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featcache
from featcache.data.row_weights import read_row_weights
from featcache.data.split import load_splits
from featcache.errors import SourceError
from featcache.heads.row_weights import WEIGHTED
from featcache.heads.scorers import Linear
from featcache.settings import DataSettings
from tests.support.cli_tools import Cli, contents, read_rows

pytestmark = pytest.mark.usefixtures("arrow_cache")


def weights_of(number: int) -> float:
    return [0.5, 2, 1][number % 3]


def write_weighted(weights: Any = weights_of, path: str = "reviews/train.jsonl") -> None:
    """The train rows again, with a weight each, in a file of their own format."""
    rows = [row | {"gewicht": weights(number)} for number, row in enumerate(read_rows("reviews/train.jsonl"))]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def linear(made: Any) -> np.ndarray:
    scorer = featcache.load_run(Path("reports"), made["run"]).head().scorer
    assert isinstance(scorer, Linear)
    return scorer.weight


def test_a_column_of_weights_reaches_the_heads_and_leaves_the_cache_as_it_is(cli: Cli, trained: Path) -> None:
    write_weighted()
    cli.ok("extract", "--all-splits")
    before = contents(Path("cache"))
    for kind in WEIGHTED:
        asked = ("train-head", "--head", kind, "--epochs", "3", "--json")
        plain = cli.ok(*asked).json
        weighted = cli.ok(*asked, "--weight-column", "gewicht").json
        again = cli.ok(*asked, "--weight-column", "GEWICHT").json
        runs = [featcache.load_run(Path("reports"), made["run"]) for made in (plain, weighted, again)]
        first, second, third = (run.predictions("test").probabilities for run in runs)
        assert np.abs(first - second).max() > 1e-4
        np.testing.assert_array_equal(second, third)
        assert runs[1].record.settings["weight_column"] == "gewicht"
    assert {name: now for name, now in contents(Path("cache")).items() if "/states/" not in name} == before
    weights = ("--weight-column", "gewicht", "--json")
    assert cli.ok("sweep", "--lr", "1e-3", "--epochs", "2", *weights).json["best"]
    curve = ("curve", "--sizes", "60", "--seeds", "1", "--head", "ridge")
    assert cli.ok(*curve, "--json").json["folder"] != cli.ok(*curve, *weights).json["folder"]


def test_weights_by_class_name_equal_a_column_of_them(cli: Cli, trained: Path) -> None:
    labels = featcache.load_run(Path("reports"), "logistic-last-mean-1").record.label_names
    numbers = [str(row["label"]) for row in read_rows("reviews/train.jsonl")]
    heavy = sorted(set(numbers))[1]
    write_weighted(lambda number: 3.0 if numbers[number] == heavy else 1.0)
    cli.ok("extract", "--all-splits")
    asked = ("train-head", "--head", "exact", "--json")
    name = labels[1]
    by_name = cli.ok(*asked, "--class-weight", f"{name}=3").json
    by_column = cli.ok(*asked, "--weight-column", "gewicht").json
    np.testing.assert_array_equal(linear(by_name), linear(by_column))
    assert np.abs(linear(by_name) - linear(cli.ok(*asked).json)).max() > 1e-4
    refused = ("train-head", "--class-weight", "nobody=3")
    cli.refused(2, refused, "there is no label 'nobody'", f"labels: {labels[0]}, {labels[1]}")
    asked_by_name = ("--class-weight", f"{name}=3")
    cli.refused(2, ("train-head", "--head", "neighbours", *asked_by_name), "counts all rows alike")
    cli.refused(2, ("finetune", "--train", "top-blocks:1", *asked_by_name), "none of none, balanced")


@pytest.mark.bad_input("defects")
@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (-1, "-1 in column 'gewicht' is no weight"),
        ("much", "'much' in column 'gewicht' is no weight"),
        (None, "None in column 'gewicht' is no weight"),
        (float("nan"), "in column 'gewicht' is no weight"),
        (True, "is no weight"),
    ],
)
def test_rows_without_a_usable_weight_are_named(work: Path, weight: object, said: str) -> None:
    write_weighted(lambda number: weight if number == 6 else 1)
    data = DataSettings(dataset="reviews")
    split = load_splits(data, ["train"], seed=0)["train"]
    with pytest.raises(SourceError, match="row 7 of train: ") as caught:
        read_row_weights(data, split, "gewicht")
    assert said in caught.value.what


@pytest.mark.bad_input("defects")
def test_a_column_that_is_not_there_or_all_zero_and_other_rows_are_refused(cli: Cli, trained: Path) -> None:
    cli.refused(3, ("train-head", "--weight-column", "gewicht"), "no column 'gewicht'", "--weight-column")
    write_weighted(lambda number: 0)
    cli.ok("extract", "--all-splits")
    cli.refused(3, ("train-head", "--weight-column", "gewicht"), "are 0")


def test_weights_of_a_held_out_train_split_belong_to_its_rows(work: Path) -> None:
    rows = read_rows("reviews/train.jsonl")
    lines = ["text,label,w", *(f"{row['text']},{row['label']},{n}.25" for n, row in enumerate(rows))]
    Path("all.csv").write_text("\n".join(lines), encoding="utf-8")
    data = DataSettings(data_files={"train": "all.csv"})
    split = load_splits(data, ["train"], seed=1)["train"]
    assert 0 < len(split) < len(rows)
    np.testing.assert_array_equal(read_row_weights(data, split, "w"), split.row_numbers + 0.25)
