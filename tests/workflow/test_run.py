"""`featcache.run`: tables in memory become the runs, checks and verdict that a file gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import featcache
from featcache.errors import SourceError
from featcache.system.progress import Progress
from tests.support.cli_tools import Cli, read_rows
from tests.support.review_files import write_reviews

HOSTILE = "<script>alert(1)</script>\u202e好"


@pytest.fixture
def small(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrow_cache: None
) -> dict[str, Any]:
    """Settings of a small run, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    small = {"dtype": "float32", "max_length": 16, "views": "last/mean", "epochs": 3}
    return {"model": str(tiny("bert")), **small}


@pytest.fixture
def reviews(tmp_path: Path) -> pd.DataFrame:
    rows = [row for path in write_reviews(tmp_path / "reviews", 120).values() for row in read_rows(path)]
    return pd.DataFrame(rows).set_axis(["评论", "类别"], axis=1)


def test_a_dataframe_gives_what_its_file_gives(
    small: dict[str, Any], reviews: pd.DataFrame, cli: Cli
) -> None:
    seen: list[Progress] = []
    found = featcache.run(reviews, text="评论", label="类别", on_progress=seen.append, **small)
    reviews.to_csv("reviews.csv", index=False)
    flags = ["--model", small["model"], "--dtype", "float32", "--max-length", "16", "--views", "last/mean"]
    typed = cli.ok("run", "reviews.csv", *flags, "--epochs", "3", "--reports-dir", "typed", "--json").json
    assert [run.record.head for run in found.runs] == [run["head"] for run in typed["runs"]]
    for made, run in zip(found.runs, typed["runs"], strict=True):
        assert made.record.metrics == run["metrics"]
    assert found.best.name == typed["verdict"]["run"] == found.verdict.run  # type: ignore[union-attr]
    assert [check.state for check in found.checks] == [check["state"] for check in typed["checks"]]
    assert any("held out" in each.text for each in seen) and seen[-1] == Progress("train", done=5, total=5)
    again = featcache.run(reviews, text="评论", label="类别", **small)
    assert {result.cached for result in again.extracted} == {True}


def test_tables_of_other_kinds_give_the_same_features(small: dict[str, Any], reviews: pd.DataFrame) -> None:
    import datasets
    import pyarrow as pa

    names = sorted(set(reviews["类别"]))
    plain = datasets.Dataset.from_pandas(reviews, preserve_index=False)
    classes = datasets.Features({"评论": datasets.Value("string"), "类别": datasets.ClassLabel(names=names)})
    kinds = [
        reviews,
        reviews.astype({"类别": "category"}),
        plain,
        plain.cast(classes),
        pa.table(plain.data.table),
    ]
    found = [featcache.run(table, text="评论", label="类别", **small) for table in kinds]
    assert {each.extracted[0].fingerprint for each in found} == {found[0].extracted[0].fingerprint}
    assert {each.extracted[0].encoded for each in found[1:]} == {0}
    assert found[3].best.record.label_names == tuple(names)


def test_tables_by_split(small: dict[str, Any], reviews: pd.DataFrame) -> None:
    parts = {"train": reviews[:100], "dev": reviews[100:150], "test": reviews[150:]}
    found = featcache.run(parts, text="评论", label="类别", **small)
    assert {result.split: result.rows for result in found.extracted} == {
        "train": 100, "validation": 50, "test": len(reviews) - 150,
    }  # fmt: skip
    with pytest.raises(SourceError, match="'tset' is no split"):
        featcache.run({"train": reviews, "tset": reviews}, **small)
    with pytest.raises(SourceError, match="list, and no table"):
        featcache.run(["房间很干净"], **small)
    with pytest.raises(SourceError, match="no column"):
        featcache.run(reviews, text="评", label="类别", **small)
    mixed = pd.DataFrame({"text": ["好", 3], "label": ["a", "b"]})
    with pytest.raises(SourceError, match="the train table cannot be read"):
        featcache.run(mixed, **small)


def test_predict_gives_back_the_kind_of_table(small: dict[str, Any], reviews: pd.DataFrame) -> None:
    import datasets

    found = featcache.run(reviews, text="评论", label="类别", **small)
    new = reviews.drop(columns="类别").assign(店=range(len(reviews)))
    labelled = found.predict(new)
    assert list(labelled.columns) == ["评论", "店", "prediction", "probability", "truncated"]
    assert labelled.index.equals(new.index) and list(labelled["店"]) == list(new["店"])
    for texts in (new["评论"].tolist(), new["评论"]):
        assert [each.label for each in found.predict(texts)] == labelled["prediction"].tolist()
    assert (labelled["prediction"] == reviews["类别"]).mean() > 0.7
    table = found.predict(datasets.Dataset.from_pandas(new, preserve_index=False))
    assert isinstance(table, datasets.Dataset) and table["prediction"][:] == labelled["prediction"].tolist()
    with pytest.raises(SourceError, match="has a column prediction already"):
        found.predict(labelled)
    with pytest.raises(SourceError, match="empty"):
        found.predict(pd.DataFrame({"评论": ["好", " "]}))


def test_objects_show_themselves_and_hostile_texts_do_nothing(
    small: dict[str, Any], reviews: pd.DataFrame
) -> None:
    reviews["类别"] = reviews["类别"].map({"good": HOSTILE, "bad": "坏"})
    found = featcache.run(reviews, text="评论", label="类别", **small)
    features = featcache.find_features(found.settings, "train").features("last/mean")
    pages = [each._repr_html_() for each in (found, found.best, found.compared, features)]  # type: ignore[union-attr]
    for page in pages:
        assert page.startswith("<table>") and "<script" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in pages[0] and "&lt;script&gt;" in pages[3]
    assert found.best.name in pages[0] and found.best.name in pages[1]
    assert all(run.name in pages[2] for run in found.runs)
    assert f"{len(features.y):,}"[:2] in repr(features) and found.best.name in repr(found)


def test_numbers_have_no_verdict_and_are_predicted(small: dict[str, Any], reviews: pd.DataFrame) -> None:
    reviews["分"] = [len(text) / 7 for text in reviews["评论"]]
    found = featcache.run(reviews, text="评论", label="分", task="regression", **small)
    assert found.verdict is None and "RMSE" in found.compared._repr_html_()  # type: ignore[union-attr]
    assert "RMSE" in found.best._repr_html_() and "<table>" in found._repr_html_()
    labelled = found.predict(reviews[["评论"]])
    assert list(labelled.columns) == ["评论", "prediction", "prediction_low", "prediction_high", "truncated"]


def test_the_public_names_are_listed_and_nothing_else() -> None:
    code = "import featcache; print(*dir(featcache)); import sys; print('torch' in sys.modules)"
    listed, torch = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    ).stdout.splitlines()
    assert listed.split() == sorted([*featcache.__all__, "__version__"]) and torch == "False"
    assert all(callable(getattr(featcache, name)) for name in featcache.__all__)
