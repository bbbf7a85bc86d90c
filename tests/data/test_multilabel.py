"""Any number of labels a row: as lists, as text with a separator, and from the cache."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import MultiLabelBinarizer

from featcache.data.split import Split, from_texts, load_splits
from featcache.errors import CacheMiss, SourceError, UsageError
from featcache.extraction.api import extract_splits
from featcache.fingerprint import row_hashes
from featcache.settings import DataSettings
from featcache_cli.main import main
from tests.support.documents import cache_document
from tests.support.extraction import Case, counted, one_thread, some_texts
from tests.support.source_files import both, jsonl, train, write, write_rows

NAMES = ("cheap", "clean", "far", "loud")


@pytest.fixture(scope="module", autouse=True)
def arrow_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` keeps its Arrow files in one folder for all tests here."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow")))
        with one_thread():
            yield


def labels_of(split: Split) -> list[set[str]]:
    """The names of each row's labels."""
    assert split.labels.dtype == np.uint8 and split.labels.shape == (len(split), len(split.label_names))
    return [{split.label_names[index] for index in np.flatnonzero(row)} for row in split.labels]


def read(path: Path, labels: list[Any], **settings: Any) -> Split:
    return train(write_rows(path, [f"t{i}" for i in range(len(labels))], labels), **settings)


# ---------------------------------------------------------------- what makes data multi-label


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([["b", "a", "b"], [], ["c"]], ("a", "b", "c")),
        ([[10, 9], [9], []], ("9", "10")),
        ([["10", "9"], ["9"], []], ("9", "10")),
        ([["a"], ["b"], ["a"]], ("a", "b")),
        ([[" a", "b "], ["a"], ["b"]], ("a", "b")),
        ([["是", "否"], [], ["是"]], ("否", "是")),
    ],
)
def test_lists_of_labels(tmp_path: Path, kind: str, labels: list[list[Any]], names: tuple[str, ...]) -> None:
    split = read(tmp_path / f"a.{kind}", labels)
    assert split.label_names == names
    assert labels_of(split) == [{str(label).strip() for label in cell} for cell in labels]


def test_numbers_of_any_spelling_are_one_label(tmp_path: Path) -> None:
    split = read(tmp_path / "a.jsonl", [[1, 1.0, "1"], ["2.0", 1], [2]])
    assert (split.label_names, split.labels.tolist()) == (("1", "2"), [[1, 0], [1, 1], [0, 1]])
    mixed = read(tmp_path / "b.jsonl", [[1, "a"], [True, False], []])
    assert mixed.label_names == ("1", "False", "True", "a")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_label_separator(tmp_path: Path, kind: str) -> None:
    cells = ["b;a", "", " c ; b;b; ", ";", "a"]
    split = read(tmp_path / f"a.{kind}", cells, label_separator=";")
    assert labels_of(split) == [{"a", "b"}, set(), {"b", "c"}, set(), {"a"}]
    assert split.label_names == ("a", "b", "c")
    numbers = read(tmp_path / f"b.{kind}", ["10;9", "9", ""], label_separator=";")
    assert (numbers.label_names, labels_of(numbers)) == (("9", "10"), [{"9", "10"}, {"9"}, set()])
    several = read(tmp_path / f"c.{kind}", ["a b||c", "c", "||"], label_separator="||")
    assert labels_of(several) == [{"a b", "c"}, {"c"}, set()]


def test_without_a_separator_a_text_is_one_label(tmp_path: Path) -> None:
    split = read(tmp_path / "a.csv", ["b;a", "a", "a;b"])
    assert (split.labels.tolist(), split.label_names) == ([2, 0, 1], ("a", "a;b", "b;a"))
    with pytest.raises(UsageError, match="--label-separator is empty"):
        read(tmp_path / "a.csv", ["a", "b"], label_separator="")


def test_a_separator_and_values_that_are_no_text(tmp_path: Path) -> None:
    split = read(tmp_path / "a.jsonl", ["1;3", 2, [3, 1], []], label_separator=";")
    assert labels_of(split) == [{"1", "3"}, {"2"}, {"1", "3"}, set()]
    with pytest.raises(SourceError, match="row 2 of validation has no label"):
        read(tmp_path / "b.jsonl", ["1;3", None], label_separator=";")


list_cells = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "长", "1", "-1", "x;y"]), max_size=5), min_size=2, max_size=12
)


@given(cells=list_cells)
def test_the_same_labels_however_they_are_written(cells: list[list[str]]) -> None:
    """Against scikit-learn, from lists and from joined texts."""
    binarizer = MultiLabelBinarizer()
    expected = binarizer.fit_transform(cells)
    if len(binarizer.classes_) == 0:
        with pytest.raises(SourceError, match="no row of test has a label"):
            from_texts("test", ["x"] * len(cells), cells)
        return
    split = from_texts("test", ["x"] * len(cells), cells)
    if all(name.lstrip("-").isdigit() for name in binarizer.classes_):
        by_value = sorted(range(len(binarizer.classes_)), key=lambda i: int(binarizer.classes_[i]))
        expected = expected[:, by_value]
    else:
        assert split.label_names == tuple(binarizer.classes_)
    assert (split.labels == expected).all()


def save(folder: Path, cells: list[list[int]], kind: str = "Sequence", **parts: Any) -> Any:
    """A dataset with lists of ClassLabel, saved as train of `folder`."""
    import datasets

    label = datasets.ClassLabel(names=list(NAMES))
    features = {"text": datasets.Value("string"), "labels": getattr(datasets, kind)(label)}
    table = {"text": [f"t{i}" for i in range(len(cells))], "labels": cells}
    made = datasets.Dataset.from_dict(table, features=datasets.Features(features))
    datasets.DatasetDict({"validation": made, **parts}).save_to_disk(str(folder))
    return made


@pytest.mark.parametrize("kind", ["Sequence", "LargeList"])
def test_lists_of_class_labels_keep_all_their_names(tmp_path: Path, kind: str) -> None:
    cells = [[3, 0], [], [1, 1]]
    made = save(tmp_path / "saved", cells, kind)
    made.to_parquet(str(tmp_path / "a.parquet"))
    data = DataSettings(dataset=str(tmp_path / "saved"))
    saved = load_splits(data, ["validation"], seed=0)["validation"]
    for split in (saved, train(tmp_path / "a.parquet")):
        assert split.label_names == NAMES  # "far" too, though no row has it
        assert labels_of(split) == [{"loud", "cheap"}, set(), {"clean"}]
    own = DataSettings(dataset=str(tmp_path / "saved"), label_names=("w", "x", "y", "z"))
    assert labels_of(load_splits(own, ["validation"], seed=0)["validation"])[0] == {"w", "z"}


def test_a_shuffled_dataset_keeps_rows_and_lists_together(tmp_path: Path) -> None:
    import datasets

    cells = [[i % 4, (i + 1) % 4] for i in range(30)]
    made = save(tmp_path / "one", cells).shuffle(seed=3)
    datasets.DatasetDict({"validation": made}).save_to_disk(str(tmp_path / "two"))
    split = load_splits(DataSettings(dataset=str(tmp_path / "two")), ["validation"], seed=0)["validation"]
    names = {f"t{i}": {NAMES[label] for label in cell} for i, cell in enumerate(cells)}
    assert dict(zip(split.texts(slice(None)), labels_of(split), strict=True)) == names
    assert split.texts([0]) != ["t0"]


def test_label_names_of_numbers_and_of_texts(tmp_path: Path) -> None:
    numbers = read(tmp_path / "a.jsonl", [[2, 0], [1], []], label_names=("x", "y", "z"))
    assert (labels_of(numbers), numbers.label_names) == ([{"x", "z"}, {"y"}, set()], ("x", "y", "z"))
    texts = read(tmp_path / "b.jsonl", [["z"], ["x"], []], label_names=("z", "y", "x"))
    assert texts.labels.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


# ---------------------------------------------------------------- train, and the splits beside it


def test_label_names_are_those_of_train(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", list("abcd"), [["p", "n"], ["m"], [], ["m"]])
    write_rows(tmp_path / "validation.jsonl", ["v"], [["n"]])
    write_rows(tmp_path / "test.jsonl", list("efg"), [["p"], [], []])
    splits = both(tmp_path)
    assert splits["test"].label_names == splits["train"].label_names == ("m", "n", "p")
    assert splits["test"].labels.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    write_rows(tmp_path / "test.jsonl", list("efg"), [["p"], ["m", "odd"], []])
    with pytest.raises(SourceError, match="label 'odd' in row 2 of test never occurs in train"):
        both(tmp_path)
    left = both(tmp_path, skip_bad_rows=True)["test"]
    assert (labels_of(left), left.row_numbers.tolist(), left.skipped) == ([{"p"}, set()], [0, 2], 1)
    assert left.notes == ("left out 1 row with a label that never occurs in train: row 2 of test",)


def test_splits_must_agree_on_lists(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", list("abcd"), [["p", "n"], ["m"], [], ["m"]])
    write_rows(tmp_path / "validation.jsonl", ["v"], [["n"]])
    write_rows(tmp_path / "test.jsonl", list("ef"), ["p", "n"])
    with pytest.raises(SourceError, match="the labels of train are lists, those of test are not"):
        both(tmp_path)


def test_validation_is_held_out_of_multi_label_train(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(60)]
    cells = [[name for place, name in enumerate(NAMES) if i % (place + 2) == 0] for i in range(60)]
    write_rows(tmp_path / "train.jsonl", texts, cells)
    data = DataSettings(dataset=str(tmp_path))
    splits = load_splits(data, ["train", "validation"], seed=0)
    assert (len(splits["train"]), len(splits["validation"])) == (54, 6)
    for split in splits.values():
        expected = [(texts[row], set(cells[row])) for row in split.row_numbers]
        assert list(zip(split.texts(slice(None)), labels_of(split), strict=True)) == expected
    assert splits["validation"].labels.any(axis=0).sum() >= 3
    again = load_splits(data, ["validation"], seed=0)["validation"]
    assert (again.row_numbers == splits["validation"].row_numbers).all()
    write_rows(tmp_path / "train.jsonl", list("abc"), [["p"], ["q"], ["r"]])
    with pytest.raises(SourceError, match="too few rows of any class to hold one out"):
        load_splits(data, ["train"], seed=0)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([[], [], []], "no row of train has a label"),
        ([["a", "b"], ["b", "a", "a"]], "all labels of train are the same: 'a', 'b'"),
        ([["a"], ["a"]], "all labels of train are the same: 'a'"),
    ],
)
def test_labels_that_are_all_the_same_are_refused(tmp_path: Path, cells: list[list[str]], says: str) -> None:
    write_rows(tmp_path / "train.jsonl", [f"t{i}" for i in range(len(cells))], cells)
    with pytest.raises(SourceError, match=says):
        load_splits(DataSettings(dataset=str(tmp_path)), ["train"], seed=0)


def test_one_label_that_only_some_rows_have(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", list("abcd"), [["spam"], [], [], ["spam"]])
    write_rows(tmp_path / "test.jsonl", list("e"), [[]])
    write_rows(tmp_path / "validation.jsonl", list("v"), [[]])
    splits = both(tmp_path)
    assert splits["train"].labels.tolist() == [[1], [0], [0], [1]]
    assert splits["test"].labels.tolist() == [[0]] and splits["train"].notes == ()


def test_lists_of_one_label_each_are_noted(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", list("abcd"), [["p"], ["n"], ["n"], ["p"]])
    write_rows(tmp_path / "test.jsonl", list("e"), [["n"]])
    write_rows(tmp_path / "validation.jsonl", list("v"), [["n"]])
    splits = both(tmp_path)
    assert splits["train"].labels.tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]
    note = "every row of train has exactly one label; its labels are lists, so it is multi-label"
    assert (splits["train"].notes, splits["test"].notes) == ((note,), ())


# ---------------------------------------------------------------- cells that cannot be used


@pytest.mark.parametrize(
    ("labels", "settings", "says"),
    [
        ([["a"], "b"], {}, "label in row 2 of validation is no list, that in row 1 of validation is"),
        ([3, 2, [1]], {}, "label in row 3 of validation is a list, that in row 1 of validation is not"),
        ([["a"], {"b": 1}], {}, "label in row 2 of validation is a dict"),
        ([["a"], [{"b": 1}]], {}, "label in row 2 of validation is a dict"),
        ([["a"], ["b", ["c"]]], {}, r"label in row 2 of validation is a list: \['c'\]"),
        ([["a"], ["b", None]], {}, "row 2 of validation has a null among its labels"),
        ([["a"], ["b", " "]], {}, "row 2 of validation has a null among its labels"),
        ([["a"], ["\ud800"]], {}, "row 2 of validation has a null among its labels"),
        ([[1], [float("nan")]], {}, "row 2 of validation has a null among its labels"),
        ([["a"], None], {}, "row 2 of validation has no label"),
        ([None, None], {}, "has no labels"),
        ([[], []], {}, "no row of validation has a label"),
        (["", " ; "], {"label_separator": ";"}, "no row of validation has a label"),
        ([[1], [2, 0.5]], {}, "label 0.5 in row 2 of validation is not a whole number"),
        ([[0], [1, 2]], {"label_names": ("a", "b")}, "label 2 in row 2 of validation has no name"),
        ([[0], [1, -1]], {"label_names": ("a", "b")}, "label -1 in row 2 of validation has no name"),
        ([["a"], ["b", "c"]], {"label_names": ("a", "b")}, "label 'c' in row 2 .* not in --label-names"),
        ([[0, 1, 0], [1, 1, 0]], {}, r"labels in row 1 of validation look multi-hot: \[0, 1, 0\]"),
        ([[0.0, 1.0], [1.0, 1.0]], {}, "labels in row 2 of validation look multi-hot"),
        (["0;1;0", "1;0;0"], {"label_separator": ";"}, "labels in row 1 of validation look multi-hot"),
    ],
)
def test_cells_that_cannot_be_used(tmp_path: Path, labels: list[Any], settings: Any, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        read(tmp_path / "a.jsonl", labels, **settings)


def test_zeros_and_ones_are_labels_where_they_are_no_multi_hot(tmp_path: Path) -> None:
    split = read(tmp_path / "a.jsonl", [[0, 1], [1], []])
    assert labels_of(split) == [{"0", "1"}, {"1"}, set()]
    assert read(tmp_path / "b.jsonl", [[0, 1], [1, 0]]).labels.tolist() == [[1, 1], [1, 1]]


def test_parquet_and_datasets_columns_that_cannot_be_used(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, columns = ["x", "y"], {}
    columns["nested"] = pa.array([[[1]], [[2], [3]]])
    columns["structs"] = pa.array([{"a": 1}, {"a": 2}])
    columns["bytes"] = pa.array([[b"a"], [b"b"]])
    columns["null"] = pa.array([["a"], ["b", None]])
    for name, column in columns.items():
        pq.write_table(pa.table({"text": texts, "label": column}), tmp_path / f"{name}.parquet")
    pairs = datasets.Features({"text": datasets.Value("string"), "label": datasets.Array2D((1, 2), "int64")})
    array = datasets.Dataset.from_dict({"text": texts, "label": [[[1, 2]], [[3, 4]]]}, features=pairs)
    array.save_to_disk(str(tmp_path / "array"))
    for name, says in (
        ("nested", r"label in row 1 of validation is a list: \[1\]"),
        ("structs", "label in row 1 of validation is a dict"),
        ("bytes", "row 1 of validation: a label cannot be a list"),
        ("null", "row 2 of validation has a null among its labels"),
    ):
        with pytest.raises(SourceError, match=says):
            train(tmp_path / f"{name}.parquet")
        table = datasets.Dataset(pa.table({"text": texts, "label": columns[name]}))
        datasets.DatasetDict({"validation": table}).save_to_disk(str(tmp_path / name))
        with pytest.raises(SourceError, match=says):
            load_splits(DataSettings(dataset=str(tmp_path / name)), ["validation"], seed=0)
    with pytest.raises(SourceError, match=r"label in row 1 of train is a list: \[1, 2\]"):
        load_splits(DataSettings(dataset=str(tmp_path / "array")), ["train"], seed=0)


def test_rows_that_may_be_left_out(tmp_path: Path) -> None:
    cells = [["a"], None, ["b", None], [], ["b"], ["c", None]]
    path = write_rows(tmp_path / "a.jsonl", [f"t{i}" for i in range(5)] + [""], cells)
    split = train(path, skip_bad_rows=True)
    assert (labels_of(split), split.row_numbers.tolist()) == ([{"a"}, set(), {"b"}], [0, 3, 4])
    assert split.label_names == ("a", "b")  # "c" stands only in a row that is not there
    assert (split.skipped, split.notes) == (
        3,
        ("left out 3 rows without text or label: rows 2, 3, 6 of validation",),
    )


def test_ten_thousand_labels(tmp_path: Path) -> None:
    names = [f"label{i:05}" for i in range(10_000)]
    cells = [names[i * 20 : (i + 1) * 20] for i in range(500)]
    path = write(
        tmp_path / "a.jsonl",
        jsonl(*({"text": f"t{i}", "labels": cell} for i, cell in enumerate(cells * 4))),
    )
    tracemalloc.start()
    try:
        split = train(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert split.label_names == tuple(names) and split.labels.shape == (2000, 10_000)
    assert labels_of(split)[1999] == set(cells[499]) and split.labels.sum() == 40_000
    assert peak < 2.5 * split.labels.nbytes
    write(tmp_path / "train.jsonl", path.read_text())
    write_rows(tmp_path / "test.jsonl", ["x"], [["label99999"]])
    write_rows(tmp_path / "validation.jsonl", ["x"], [["label00001"]])
    with pytest.raises(SourceError, match="label99999") as caught:
        both(tmp_path)
    assert len(caught.value.hint or "") < 500


# ---------------------------------------------------------------- through the cache

ROWS = 40


@pytest.fixture
def case(tiny: Callable[[str], Path], tmp_path: Path) -> Case:
    case = Case(tmp_path / "case", tiny("bert"), {})
    texts = some_texts(ROWS, 5)
    cells = [[name for place, name in enumerate(NAMES) if i % (place + 2) == 1] for i in range(ROWS)]
    case.write([{"text": text, "label": cell} for text, cell in zip(texts, cells, strict=True)])
    case.write([{"text": text, "label": ["far"]} for text in some_texts(5, 6)], "validation")
    return case


def expected(case: Case) -> np.ndarray:
    """uint8 `[N, C]`, out of the jsonl file itself."""
    cells = [row["label"] for row in case.rows()]
    return np.array([[name in cell for name in NAMES] for cell in cells], np.uint8)


def assert_cached(case: Case, **changes: Any) -> None:
    """The labels in the cache are those of the case's jsonl file, for us and for h5py."""
    file = case.find(**changes)
    features = file.features("last/cls")
    assert features.y.dtype == np.uint8 and features.label_names == NAMES
    assert (features.y == expected(case)).all() and features.x.shape[0] == ROWS
    with h5py.File(file.path) as plain:
        assert plain["labels"].dtype == np.uint8 and (plain["labels"][:] == expected(case)).all()
    assert file.document.labels.kind == "multi-label" and file.sealed.verify()


def other_format(case: Case, kind: str) -> dict[str, Any]:
    """The case's rows in another format; the settings that read them."""
    import datasets

    folder = case.folder / kind
    folder.mkdir()
    for split in ("train", "validation"):
        rows = case.rows(split)
        texts, cells = [row["text"] for row in rows], [row["label"] for row in rows]
        if kind in ("csv", "tsv"):
            write_rows(folder / f"{split}.{kind}", texts, [" ; ".join(cell) for cell in cells])
        elif kind == "parquet":
            write_rows(folder / f"{split}.parquet", texts, cells)
        else:
            label = datasets.Sequence(datasets.ClassLabel(names=list(NAMES)))
            made = datasets.Features({"text": datasets.Value("string"), "label": label})
            ids = [[NAMES.index(name) for name in cell] for cell in cells]
            table = datasets.Dataset.from_dict({"text": texts, "label": ids}, features=made)
            table.save_to_disk(str(folder / split))
    if kind == "saved":
        write(folder / "dataset_dict.json", json.dumps({"splits": ["train", "validation"]}))
    return {"dataset": str(folder)} | ({"label_separator": ";"} if kind in ("csv", "tsv") else {})


def test_from_lists_to_the_cache_and_back(case: Case) -> None:
    with counted() as passes:
        first = case.extract()
        assert (first.rows, first.encoded, first.cached) == (ROWS, ROWS, False)
        assert sum(passes) == ROWS
        second = case.extract()
    assert (second.cached, second.encoded, sum(passes)) == (True, 0, ROWS)
    assert_cached(case)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "saved"])
def test_the_same_labels_in_another_format(case: Case, kind: str) -> None:
    """First from the other format alone, then found by its rows when asked for as jsonl."""
    changes = other_format(case, kind)
    assert case.extract(**changes).encoded == ROWS
    assert_cached(case, **changes)
    with counted() as passes:
        result = case.extract()
    assert (result.cached, passes, len(case.files())) == (True, [], 1)
    assert_cached(case)


def test_the_flag_on_the_command_line(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    changes = other_format(case, "csv")
    own = ("--model", str(case.model), "--dataset", changes["dataset"], "--cache-dir", str(case.cache))
    argv = ["extract", *own, "--dtype", "float32", "--json", "--split", "train"]
    assert main([*argv, "--label-separator", ""]) != 0
    assert "--label-separator is empty" in capsys.readouterr().err and not case.files()
    assert main([*argv, "--label-separator", ";"]) == 0
    assert_cached(case, **changes)
    write(Path(changes["dataset"]) / "validation.csv", "text,label\n好,cheap;odd\n坏,\n")
    capsys.readouterr()
    assert main([*argv[:-1], "validation", "--label-separator", ";"]) != 0
    assert "label 'odd' in row 1 of validation never occurs in train" in capsys.readouterr().err


def test_another_separator_is_another_request(case: Case) -> None:
    path = str(Path(other_format(case, "csv")["dataset"]) / "train.csv")
    files = {"dataset": "unused", "data_files": {"train": path, "validation": path}}
    case.extract(**files, label_separator=";")
    with pytest.raises(CacheMiss, match=re.escape("source.label_separator (cached ';', wanted '|')")):
        case.find(**files, label_separator="|")
    with pytest.raises(CacheMiss, match=re.escape("source.label_separator (cached ';', wanted none)")):
        case.find(**files)
    result = case.extract(**files, label_separator="|")
    assert (result.encoded, result.reused) == (0, ROWS)
    other = case.find(**files, label_separator="|").features("last/cls")
    assert "cheap ; clean" in other.label_names and other.y.sum(axis=1).max() == 1
    assert_cached(case, **files, label_separator=";")


def test_one_label_of_each_row_is_another_file_of_the_same_features(case: Case) -> None:
    case.extract()
    several = case.find().path
    case.write([{**row, "label": row["label"][0] if row["label"] else "none"} for row in case.rows()])
    case.write([{"text": "好", "label": "none"}], "validation")
    assert (case.extract().encoded, len(case.files())) == (0, 2)
    features = case.find().features("last/cls")
    assert features.path != several
    assert (features.y.dtype, features.y.shape) == (np.int64, (ROWS,))
    assert [features.label_names[label] for label in features.y] == [row["label"] for row in case.rows()]


def test_corrected_labels_need_no_forward_pass(case: Case) -> None:
    case.extract()
    before = case.features()
    rows = case.rows()
    rows[7]["label"] = ["loud", "cheap"] if rows[7]["label"] != ["loud", "cheap"] else []
    case.write(rows)
    with counted() as passes:
        result = case.extract()
    assert (result.encoded, result.reused, passes, len(case.files())) == (0, ROWS, [], 2)
    assert_cached(case)
    assert (case.features() == before).all()


def test_an_interrupted_extraction_continues(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.extraction.partition.UNIT_ROWS", 8)
    whole = case.fresh("whole")
    whole.extract()

    def stop(progress: Any) -> None:
        if progress.stage == "encode" and progress.done >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_splits(case.settings(), ["train"], stop)
    assert not case.files() and list(case.cache.rglob("block-*.safetensors"))
    assert 0 < case.extract().encoded < ROWS
    assert_cached(case)
    assert case.files()[0].read_bytes() == whole.files()[0].read_bytes()


def test_long_label_columns_are_written_in_pieces(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.extraction.assemble.ASSEMBLE_ROWS", 7)
    case.extract()
    assert_cached(case)


def test_single_and_multi_label_files_differ_and_single_ones_stay_as_they_were() -> None:
    hashes = row_hashes(["a", "b"])
    single = cache_document(None, [], hashes, np.array([0, 1]), ["a", "b"])
    assert set(single.to_json()["labels"]) == {"chain", "names"}
    hot = cache_document(None, [], hashes, np.array([[1, 0], [0, 1]], np.uint8), ["a", "b"])
    assert hot.labels.kind == "multi-label"
    other = cache_document(None, [], hashes, np.array([[1, 0], [1, 1]], np.uint8), ["a", "b"])
    assert len({document.fingerprint for document in (single, hot, other)}) == 3
    # The same bytes, told apart by the kind alone.
    bytes_of_one = np.frombuffer(np.array([1], "<i8").tobytes(), np.uint8).reshape(1, 8)
    names = [f"n{i}" for i in range(8)]
    one = cache_document(None, [], hashes[:1], np.array([1]), names)
    row = cache_document(None, [], hashes[:1], bytes_of_one, names)
    assert one.labels.chain == row.labels.chain and one.fingerprint != row.fingerprint
    turned = cache_document(None, [], hashes, np.asfortranarray([[1, 0], [1, 1]], np.uint8), ["a", "b"])
    assert turned == other
