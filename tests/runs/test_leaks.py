"""Rows of validation and test that an earlier split has: found, left out of every choice, scored apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.data.split import Split, from_texts
from featcache.evaluation.leaks import EXACT, NORMALISED
from featcache.evaluation.metrics import score
from featcache.extraction.api import find_features
from featcache.fingerprint import row_hashes
from featcache.runs.leaks import find_leaks
from featcache.runs.run import Run, list_runs
from featcache.settings import DataSettings, PathSettings, Settings, load_settings
from tests.support.cli_tools import Cli, read_rows, write_rows

Rows = list[tuple[Any, Any]]


def rows_of(split: str) -> Rows:
    return [(row["text"], row["label"]) for row in read_rows(f"reviews/{split}.jsonl")]


def wide(text: str) -> str:
    """The same text in other words of Unicode: full width, with more white space."""
    return "　" + "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text) + " \t"


def leak(validation: Rows, test: Rows) -> None:
    """Put rows in front of those of validation and test."""
    write_rows(Path("reviews/validation.jsonl"), [*validation, *rows_of("validation")])
    write_rows(Path("reviews/test.jsonl"), [*test, *rows_of("test")])


@pytest.fixture
def leaking(work: Path) -> Path:
    """The folder `work`: 4 rows of validation and 5 of test have a text of an earlier split."""
    train, held_out = rows_of("train"), rows_of("validation")
    turned = {"good": "bad", "bad": "good"}
    wrong = [(wide(text), turned[label]) for text, label in train[:4]]  # would lead to other choices
    leak(wrong, [train[7], (train[8][0].upper() + " ", "bad"), held_out[0], *train[9:11]])
    return work


def trained(cli: Cli, *flags: str) -> Run:
    cli.ok("extract", "--all-splits", "--quiet")
    cli.ok("train-head", "--quiet", *flags)
    return list_runs(Path("reports"))[-1]


def test_a_run_is_scored_with_and_without_leaked_rows(cli: Cli, leaking: Path) -> None:
    run = trained(cli, "--epochs", "3")
    clean = run.record.clean
    assert clean is not None and clean.rule == NORMALISED
    assert clean.leaked == {"validation": 4, "test": 5}
    found = run.predictions("test")
    assert found.leaked is not None and np.flatnonzero(found.leaked).tolist() == [0, 1, 2, 3, 4]
    kept = ~found.leaked
    expected = score(found.probabilities[kept], found.labels[kept], found.label_names).summary
    assert clean.metrics["test"] == pytest.approx(expected)
    low, high = clean.intervals["test"]["accuracy"]
    assert low <= clean.metrics["test"]["accuracy"] <= high
    assert run.metric("test", "accuracy", clean=True) == clean.metrics["test"]["accuracy"]
    assert run.metric("train", "accuracy", clean=True) == run.metric("train", "accuracy")


@pytest.mark.parametrize(
    "flags",
    [
        ("--epochs", "6", "--lr", "0.05"),
        ("--head", "mlp", "--epochs", "4"),
        ("--head", "exact", "--penalty", "validation"),
    ],
)
def test_choices_are_those_of_a_validation_split_without_the_leaked_rows(
    cli: Cli, leaking: Path, flags: tuple[str, ...]
) -> None:
    with_leaks = trained(cli, *flags)
    write_rows(Path("reviews/validation.jsonl"), rows_of("validation")[4:])
    without = trained(cli, *flags)
    assert without.record.clean is not None and without.record.clean.leaked["validation"] == 0
    assert "validation" not in without.record.clean.metrics  # nothing is there twice
    one, two = with_leaks.record, without.record
    assert (one.best_epoch, one.solver, one.calibration) == (two.best_epoch, two.solver, two.calibration)
    assert one.history == two.history
    assert one.clean is not None
    assert one.clean.metrics["validation"] == pytest.approx(two.metrics["validation"])
    heads = [run.head() for run in (with_leaks, without)]
    for name, value in heads[0].scorer.tensors().items():
        np.testing.assert_array_equal(value, heads[1].scorer.tensors()[name])


def test_all_validation_rows_are_used_where_every_one_leaks(cli: Cli, work: Path) -> None:
    write_rows(Path("reviews/validation.jsonl"), rows_of("train")[:20])
    record = trained(cli, "--epochs", "2").record
    assert record.clean is not None and record.clean.leaked["validation"] == 20
    assert "validation" not in record.clean.metrics
    assert record.calibration is not None


def test_keys_are_read_from_the_source_once(cli: Cli, leaking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(cli, "--epochs", "1")
    assert len(list(Path("cache/texts").iterdir())) == 3
    monkeypatch.setattr("featcache.runs.leaks.load_splits", pytest.fail)
    assert trained(cli, "--epochs", "1").record.clean == first.record.clean


def test_damaged_keys_are_made_again(cli: Cli, leaking: Path) -> None:
    first = trained(cli, "--epochs", "1")
    for path, damage in zip(sorted(Path("cache/texts").iterdir()), (b"", b"x" * 40, None), strict=True):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content) if damage is None else damage)
    assert trained(cli, "--epochs", "1").record.clean == first.record.clean


def test_without_the_texts_rows_are_compared_by_their_hashes(cli: Cli, leaking: Path) -> None:
    cli.ok("extract", "--all-splits", "--quiet")
    settings = load_settings()
    hashes = {
        split: find_features(settings, split).features("last/cls").row_hash
        for split in ("train", "validation", "test")
    }
    shutil.move("reviews", "elsewhere")
    leaks = find_leaks(settings, hashes)
    assert leaks.rule == EXACT
    assert {split: int(rows.sum()) for split, rows in leaks.rows.items()} == {"validation": 0, "test": 4}
    assert not Path("cache/texts").exists()
    shutil.move("elsewhere", "reviews")
    with Path("reviews/test.jsonl").open("a") as file:
        file.write(json.dumps({"text": "new", "label": "good"}) + "\n")
    assert find_leaks(settings, hashes).rule == EXACT  # the source has other rows now


def test_a_hub_dataset_is_read_on_this_disk_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(data=DataSettings(dataset="owner/name"), paths=PathSettings(str(tmp_path / "cache")))
    splits = {name: from_texts(name, texts) for name, texts in (("train", ["A", "b"]), ("test", ["a", "c"]))}
    hashes = {name: row_hashes(split.texts(slice(None))) for name, split in splits.items()}
    monkeypatch.setattr("featcache.runs.leaks.commit_on_disk", lambda *_: None)
    monkeypatch.setattr("featcache.runs.leaks.load_splits", pytest.fail)
    assert find_leaks(settings, hashes).rule == EXACT
    asked: list[DataSettings] = []

    def load(data: DataSettings, names: tuple[str, ...], *, seed: int) -> dict[str, Split]:
        asked.append(data)
        return {name: splits[name] for name in names}

    monkeypatch.setattr("featcache.runs.leaks.commit_on_disk", lambda *_: "c" * 40)
    monkeypatch.setattr("featcache.runs.leaks.load_splits", load)
    leaks = find_leaks(settings, hashes)
    assert leaks.rule == NORMALISED and leaks.rows["test"].tolist() == [True, False]
    assert [data.dataset_revision for data in asked] == ["c" * 40]  # no other commit is asked for


def test_inspect_lists_every_leaked_row(cli: Cli, leaking: Path) -> None:
    cli.ok("extract", "--all-splits", "--quiet")
    found = cli.ok("inspect", "--threshold", "1", "--json").json["leakage"]
    counts = {(pair["split"], pair["in"]): pair["rows"] for pair in found["pairs"]}
    assert counts[("validation", "train")] == 4
    assert counts[("test", "train")] + counts[("test", "validation")] == 5
    listed = {(row["split"], row["row"]) for row in found["list"]}
    assert listed == {*(("validation", row) for row in range(1, 5)), *(("test", row) for row in range(1, 6))}
