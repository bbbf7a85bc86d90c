"""Where texts and labels come from, what is held out, and how a source is described."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.data.split import SPLITS, describe_source, from_texts, load_splits
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings
from tests.support.source_files import train, write_rows

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_load_splits_holds_validation_out_of_train(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(60)]
    write_rows(tmp_path / "train.csv", texts, [i % 3 for i in range(60)])
    data = DataSettings(dataset=str(tmp_path))
    splits = load_splits(data, ["train", "validation"], seed=0)
    assert (len(splits["train"]), len(splits["validation"])) == (54, 6)
    assert np.bincount(splits["validation"].labels).tolist() == [2, 2, 2]
    rows = splits["validation"].row_numbers
    assert splits["validation"].texts(slice(None)) == [texts[row] for row in rows]
    note = "no validation split: 6 of 60 train rows held out (stratified, seed 0)"
    assert splits["train"].notes == splits["validation"].notes == (note,)
    alone = load_splits(data, ["validation"], seed=0)["validation"]
    assert (alone.row_numbers == rows).all() and alone.name == "validation"
    with pytest.raises(UsageError, match="between 0 and 1"):
        load_splits(DataSettings(dataset=str(tmp_path), validation_share=1.0), ["train"], seed=0)


# ---------------------------------------------------------------- where it comes from


def test_load_splits_of_folders_shards_and_aliases(tmp_path: Path) -> None:
    for shard in range(2):
        name = f"train-0000{shard}-of-00002-ab12.parquet"
        (tmp_path / "data").mkdir(exist_ok=True)
        write_rows(tmp_path / "data" / name, [f"{shard}a", f"{shard}b"], [0, 1])
    write_rows(tmp_path / "data" / "VAL.csv", ["c"], ["1"])
    data = DataSettings(dataset=str(tmp_path))
    splits = load_splits(data, ["train", "validation"], seed=0)
    assert splits["train"].texts(slice(None)) == ["0a", "0b", "1a", "1b"]
    assert splits["validation"].labels.tolist() == [1]
    with pytest.raises(SourceError, match=r"no test split.* train, validation"):
        load_splits(data, ["test"], seed=0)
    write_rows(tmp_path / "data" / "dev.csv", ["c"], ["1"])
    with pytest.raises(SourceError, match=r"several files for the validation split"):
        load_splits(data, ["train"], seed=0)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "reviews.csv", "a/b/c", "~/nowhere"])
def test_load_splits_does_not_ask_the_hub_for_local_paths(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("featcache.data.hub_dataset.look_up", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(SourceError, match="no such file or folder"):
        load_splits(DataSettings(dataset=name), ["train"], seed=0)


def test_load_splits_refuses_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown split 'dev2'"):
        load_splits(DataSettings(dataset=str(tmp_path)), ["dev2"], seed=0)
    with pytest.raises(SourceError, match="no train, validation or test file"):
        load_splits(DataSettings(dataset=str(tmp_path)), ["train"], seed=0)
    with pytest.raises(SourceError, match=r"no such file: .*x\.csv"):
        train(tmp_path / "x.csv")
    with pytest.raises(SourceError, match="unknown split 'foo'"):
        load_splits(DataSettings(data_files={"foo": "x.csv"}), ["train"], seed=0)


def test_load_splits_without_a_hub_names_three_ways_out(tmp_path: Path) -> None:
    code = (
        "from featcache.data.split import load_splits, describe_source\n"
        "from featcache.settings import DataSettings\n"
        "from featcache.errors import SourceError\n"
        "data = DataSettings(dataset='some/dataset:zh')\n"
        "assert describe_source(data, seed=0) is None\n"
        "try: load_splits(data, ['train'], seed=0)\n"
        "except SourceError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    for way in ("HF_ENDPOINT=https://<mirror>", "--data-files train=F,test=F", "featcache demo"):
        assert way in done.stdout
    assert done.stderr == ""


def test_load_splits_of_hub_datasets(monkeypatch: Any, tmp_path: Path) -> None:
    import datasets

    from featcache.system.hub.huggingface import Repository

    one = datasets.Dataset.from_dict({"sentence": ["a", "b"] * 9, "label": [0, 1] * 9})
    answer: Any = datasets.DatasetDict({"train": one, "unsupervised": one})
    calls: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("featcache.data.hub_dataset.is_offline", lambda: False)
    monkeypatch.setattr("featcache.data.hub_dataset._write_ref", lambda *_: None)
    commit = "c0ffee" * 6 + "c0ff"
    monkeypatch.setattr("featcache.data.hub_dataset.look_up", lambda *_: Repository(commit, {}))
    data = DataSettings(dataset="some/dataset:zh", dataset_revision="v1")
    with pytest.warns(UserWarning, match="downloading some/dataset"):
        assert len(load_splits(data, ["train"], seed=0)["train"]) == 16
    assert calls == [(("some/dataset", "zh"), {"revision": commit})]
    with pytest.warns(UserWarning), pytest.raises(SourceError, match=r"no test split.*train, unsupervised"):
        load_splits(data, ["test"], seed=0)
    document = describe_source(data, seed=0)
    assert document is not None
    assert (document["commit"], document["config"], document["seed"]) == (commit, "zh", 0)
    answer = ValueError("Config name is missing. Pick one")
    with pytest.warns(UserWarning), pytest.raises(SourceError, match="Config name is missing") as caught:
        load_splits(DataSettings(dataset="some/dataset"), ["train"], seed=0)
    assert "some/dataset:CONFIG" in (caught.value.hint or "")


# ---------------------------------------------------------------- describing


def test_describe_source_depends_on_the_content(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "train.csv", ["a", "b"], [0, 1])
    path = tmp_path / "two" / "train.csv"

    def describe(folder: str, seed: int = 0, **settings: Any) -> Any:
        return describe_source(DataSettings(dataset=str(tmp_path / folder), **settings), seed=seed)

    document = describe("one")
    assert document == describe("two") and str(tmp_path) not in json.dumps(document)
    assert document["files"]["train"]["bytes"] == path.stat().st_size
    assert describe("one", seed=1) != document != describe("one", validation_share=0.2)
    assert describe("one", label_names=("x", "y")) != document
    assert "label_separator" not in document  # a request of before there was such a setting
    assert describe("one", label_separator=";")["label_separator"] == ";"
    write_rows(tmp_path / "two" / "dev.csv", ["a"], [0])
    assert "seed" not in describe("two") and describe("two", seed=1) == describe("two")
    write_rows(path, ["a", "c"], [0, 1])
    assert describe("two")["files"]["train"] != document["files"]["train"]


def test_describe_source_of_a_saved_folder_imports_little(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    datasets.DatasetDict({"train": one, "validation": one}).save_to_disk(str(tmp_path / "s"))
    code = (
        "import sys, json; from featcache.data.split import describe_source\n"
        "from featcache.settings import DataSettings\n"
        f"data = DataSettings(dataset={str(tmp_path / 's')!r})\n"
        "print(json.dumps(describe_source(data, seed=0)))\n"
        "slow = {'datasets', 'pandas', 'pyarrow', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert "seed" not in document
    assert "train/data-00000-of-00001.arrow" in document["saved"]


# ---------------------------------------------------------------- in memory


def test_from_texts() -> None:
    split = from_texts("train", ["a", "b"], ["pos", "neg"], ["pos", "neg"], pairs=["x", ""])
    assert (split.labels.tolist(), split.label_names) == ([0, 1], ("pos", "neg"))
    assert split.pairs([1, 0]) == ["", "x"] and len(split) == 2
    numbers = from_texts("test", ["a", "b"], np.array([3, 1]))
    assert (numbers.labels.tolist(), numbers.label_names) == ([1, 0], ("1", "3"))
    assert from_texts("test", ["a"]).labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("texts", "labels", "says"),
    [
        ([], None, "no rows"),
        (["a", " "], None, "row 2 of test"),
        (["a", "\udc00"], None, "row 2 of test"),
        (["a", "b"], [1], "lengths differ"),
        (["a", 5], None, "row 2 of test: the text is a int"),
    ],
)
def test_from_texts_checks_rows(texts: list[Any], labels: Any, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        from_texts("test", texts, labels)


def test_from_texts_with_several_labels() -> None:
    lists = from_texts("train", ["x", "y", "z"], [["b", "a", "b"], [], ("b",)])
    assert (lists.labels.tolist(), lists.label_names) == ([[1, 1], [0, 0], [0, 1]], ("a", "b"))
    assert lists.labels.dtype == np.uint8
    sets = from_texts("test", ["x", "y"], [{"b", "a"}, {"b"}], ["b", "a"])
    assert (sets.labels.tolist(), sets.label_names) == ([[1, 1], [1, 0]], ("b", "a"))
    numbers = from_texts("test", ["x", "y"], [[10, 9], np.array([9])])
    assert (numbers.labels.tolist(), numbers.label_names) == ([[1, 1], [1, 0]], ("9", "10"))
    again = from_texts("test", ["x", "y", "z"], lists.labels, lists.label_names)
    assert (again.labels == lists.labels).all() and again.label_names == lists.label_names
    unnamed = from_texts("test", ["x", "y"], np.array([[True, False, False], [False, True, False]]))
    assert (unnamed.labels.tolist(), unnamed.label_names) == ([[1, 0, 0], [0, 1, 0]], ("0", "1", "2"))


@pytest.mark.parametrize(
    ("labels", "names", "says"),
    [
        (np.array([[0, 1], [2, 1]]), None, "row 2 of the label array is not multi-hot: .2 1."),
        (np.array([[0, 1], [1, 1]]), ["a"], "has 2 columns, and there are 1 names"),
        (np.zeros((1, 2)), None, "1 labels: the lengths differ"),
        ([["a"], {b"b"}], None, "row 2 of test: a label cannot be a set"),
    ],
)
def test_from_texts_checks_several_labels(labels: Any, names: Any, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        from_texts("test", ["x", "y"], labels, names)


def test_names_of_the_splits() -> None:
    assert SPLITS == ("train", "validation", "test")
