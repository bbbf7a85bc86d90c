"""`featcache run FILE`: from one labelled file to a head, with the splits that the file does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli_tools import Cli, read_rows, write_reviews, write_rows

RUN = ("--dtype", "float32", "--max-length", "16", "--views", "last/mean")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: object) -> str:
    """A folder with reviews in one file, and others in two; the model."""
    write_reviews(tmp_path / "reviews", 120)
    parts = {name: read_rows(tmp_path / f"reviews/{name}.jsonl") for name in ("train", "validation", "test")}
    rows = {name: [(row["text"], row["label"]) for row in found] for name, found in parts.items()}
    write_rows(tmp_path / "all.jsonl", [row for found in rows.values() for row in found])
    for name in ("train", "validation"):
        write_rows(tmp_path / "two" / f"{name}.jsonl", rows[name])
    monkeypatch.chdir(tmp_path)
    return str(tiny("bert"))  # type: ignore[operator]


def test_one_file_becomes_three_splits_that_other_commands_know(here: str, cli: Cli) -> None:
    found = cli.ok("run", "all.jsonl", "--model", here, *RUN)
    assert "one labelled split: a tenth of it is held out for test" in found.err
    assert "held out by a hash of each text" in found.err and "wrote featcache.toml" in found.err
    settings = Path("featcache.toml").read_text(encoding="utf-8")
    assert 'dataset = "all.jsonl"' in settings and "test_share = 0.1" in settings
    assert "most frequent label of test" in found.out and "featcache predict" in found.err
    assert "verdict\n  - use " in found.out and "always saying" in found.out and "data checks\n" in found.out
    document = cli.ok("compare", "--json").json
    runs, majority = document["runs"], document["majority"]
    assert majority["label"] in ("good", "bad") and 0.4 < majority["accuracy"] < 0.8
    assert all("test" in run["metrics"] for run in runs) and len(runs) >= 3
    again = cli.ok("train-head", "--view", "last/mean", "--epochs", "1", "--json")  # reads what is cached
    assert "test" in again.json["metrics"]
    later = cli.ok("run", "all.jsonl", "--json")
    assert {check["name"]: check["state"] for check in later.json["checks"]}["leaked rows"] == "good"
    assert later.json["verdict"]["rows"] == later.json["runs"][0]["rows"]["test"]
    assert "wrote" not in later.err and {each["cached"] for each in later.json["splits"]} == {True}


def test_validation_is_the_test_split_where_there_is_none(here: str, cli: Cli) -> None:
    found = cli.ok("run", "--dataset", "two", "--model", here, *RUN)
    assert "the validation split is the test split" in found.err
    assert "the other commands need --test-split validation, too" in found.err
    assert not Path("featcache.toml").exists()
    (run,) = [run for run in cli.ok("compare", "--json").json["runs"] if run["head"] == "logistic"]
    assert run["rows"]["test"] == len(read_rows("two/validation.jsonl"))


def test_one_file_as_train_and_test_is_said(here: str, cli: Cli) -> None:
    found = cli.ok("run", "--data-files", "train=all.jsonl,test=all.jsonl", "--model", here, *RUN)
    out = " ".join(found.out.split())
    assert "bad every test row has a text that an earlier split has" in out
    assert "is one file two splits?" in out and "this does not measure new texts" in out


def test_a_source_is_given_once(here: str, cli: Cli) -> None:
    cli.refused(2, ["run", "all.jsonl", "--dataset", "two"], "SOURCE and --dataset")
    cli.refused(3, ["run", "absent.csv", "--model", here], "no such file or folder: absent.csv")
    assert not Path("featcache.toml").exists()
