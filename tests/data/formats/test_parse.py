"""Text files, class folders, Excel and zip files: training and prediction read the same rows of them."""

from __future__ import annotations

import gzip
import json
import resource
import zipfile
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pandas
import pyarrow
import pytest
from pyarrow import feather, parquet

from featcache.data.formats.open import kind_of, open_rows
from featcache.data.split import describe_source, load_splits
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings
from tests.support.source_files import rows_of, train, write

pytestmark = [pytest.mark.usefixtures("arrow_cache"), pytest.mark.bad_input]

ROWS = [("房间很干净，服务也不错", "好评"), ("电池用了两天就坏了", "差评"), ("内容很好，孩子喜欢", "好评")]
TABS = "".join(f"{text}\t{label}\n" for text, label in ROWS)
LABEL_FIRST = "".join(f"{label}\t{text}\n" for text, label in ROWS)
FASTTEXT = "".join(f"__label__{label} {text}\n" for text, label in ROWS)


def predicted_texts(path: Path, **settings: Any) -> list[str]:
    opened = open_rows(path, kind_of(path) or "", DataSettings(**settings))
    return [row.text for batch in opened.batches for row in batch.rows]


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def class_folder(folder: Path, encoding: str = "utf-8") -> Path:
    for number, (text, label) in enumerate(ROWS):
        write(folder / label / f"{number}.txt", text.encode(encoding))
    return folder


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("content", [TABS, LABEL_FIRST, FASTTEXT, "text\tlabel\n" + TABS])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gb18030"])
def test_text_files_in_every_form(content: str, codec: str, tmp_path: Path) -> None:
    path = write(tmp_path / "dev.txt", content.encode(codec))
    assert rows_of(train(path)) == ROWS
    assert predicted_texts(path) == [text for text, _ in ROWS]
    packed = write(tmp_path / "more" / "dev.txt.gz", gzip.compress(content.encode(codec)))
    assert rows_of(train(packed)) == ROWS


def test_fasttext_lines_with_several_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.txt", "__label__a __label__b one text\n__label__b another\n")
    split = train(path)
    assert (split.label_names, split.labels.tolist()) == (("a", "b"), [[1, 1], [0, 1]])
    assert split.texts(slice(None)) == predicted_texts(path) == ["one text", "another"]


def test_lines_without_labels_are_texts_for_prediction_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.txt", "one\ttext with a tab\nanother\ttext\nthird\tone\n")
    with pytest.raises(SourceError, match="no labels") as caught:
        train(path)
    assert "__label__" in (caught.value.hint or "")
    assert predicted_texts(path) == ["one\ttext with a tab", "another\ttext", "third\tone"]


def test_a_text_line_without_its_tab_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.txt", TABS * 400 + "no tab here\n")
    with pytest.raises(SourceError, match=r"line 1201: 1 fields"):
        train(path)


@pytest.mark.parametrize("codec", ["utf-8", "gb18030"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_with_one_sub_folder_a_class(codec: str, packed: bool, tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "news", codec)
    write(folder / ".DS_Store", b"\0")
    source = zipped(tmp_path / "news.zip", folder) if packed else folder
    data = DataSettings(dataset=str(source), test_split="train")
    split = load_splits(data, ["test"], seed=0)["test"]
    assert rows_of(split) == [ROWS[0], ROWS[2], ROWS[1]]  # in the order of the names
    assert split.read_as[-1] == "text: text; label: label; not read: file"
    assert (len(split.read_as) == 2) == (codec != "utf-8")
    before = describe_source(data, seed=0)
    write(folder / "好评" / "9.txt", "更多的文本")
    if not packed:
        assert before != describe_source(data, seed=0)
        assert predicted_texts(folder) == [ROWS[0][0], ROWS[2][0], "更多的文本", ROWS[1][0]]


def test_class_folders_of_each_split(tmp_path: Path) -> None:
    for name in ("20news-bydate-train", "20news-bydate-test"):
        class_folder(tmp_path / "in" / "20news" / name)
    for source in (tmp_path / "in" / "20news", tmp_path / "in", zipped(tmp_path / "n.zip", tmp_path / "in")):
        data = DataSettings(dataset=str(source), validation_share=0.5)
        splits = load_splits(data, ["train", "test"], seed=0)
        assert len(splits["test"]) == 3


def test_files_of_one_folder_in_two_encodings(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "news", "gb18030")
    write(folder / "好评" / "9.txt", "这一个是另一种编码")
    assert train(folder).texts([2]) == ["这一个是另一种编码"]


def test_an_excel_file_has_the_rows_of_a_csv_file(tmp_path: Path) -> None:
    header = ["评论", "情感", "分数"]
    rows = [[text, label, n + 1.0] for n, (text, label) in enumerate(ROWS)]
    path = workbook(tmp_path / "dev.xlsx", 数据=[header, *rows], 空=[])
    split = train(path)
    assert rows_of(split) == ROWS
    assert split.read_as == ("text: 评论; label: 情感; not read: 分数",)
    assert predicted_texts(path) == [text for text, _ in ROWS]
    opened = open_rows(path, "xlsx")
    found = [row.values for batch in opened.batches for row in batch.rows]
    assert [row["分数"] for row in found if row] == ["1", "2", "3"]
    assert opened.needs_mark
    assert train(path, label_column="分数").label_names == ("1", "2", "3")


def test_sheets_are_named_or_asked_for(tmp_path: Path) -> None:
    sheet = [["text", "label"], ["a", 1], ["b", 0]]
    path = workbook(tmp_path / "dev.xlsx", first=sheet, second=[*sheet, ["c", 1]])
    with pytest.raises(SourceError, match="2 sheets with rows: first, second") as caught:
        train(path)
    assert "--sheet" in (caught.value.hint or "")
    assert len(train(path, sheet="second")) == 3 and len(train(path, sheet="first")) == 2
    with pytest.raises(UsageError, match="no such sheet"):
        train(path, sheet="third")
    with pytest.raises(SourceError, match=r"dev\.xls"):
        train(write(tmp_path / "more" / "dev.xls", b"no workbook"))


def test_one_file_in_a_zip_file(tmp_path: Path) -> None:
    content = "评论,情感\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
    write(tmp_path / "in" / "data" / "reviews.csv", content.encode("gb18030"))
    path = zipped(tmp_path / "dev.zip", tmp_path / "in")
    assert rows_of(train(path)) == ROWS
    assert predicted_texts(path) == [text for text, _ in ROWS]
    write(tmp_path / "in" / "more.csv", content)
    with pytest.raises(SourceError, match=r"one file of rows is needed .* data/reviews\.csv, more\.csv"):
        train(zipped(tmp_path / "dev.zip", tmp_path / "in"))


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_a_table_in_a_zip_file(ending: str, tmp_path: Path) -> None:
    table = pyarrow.table(dict(zip(("评论", "情感"), zip(*ROWS, strict=True), strict=True)))
    (tmp_path / "in").mkdir()
    if ending == "parquet":
        parquet.write_table(table, tmp_path / "in" / "a.parquet")
    else:
        feather.write_feather(table, str(tmp_path / "in" / f"a.{ending}"))
    path = zipped(tmp_path / "dev.zip", tmp_path / "in")
    assert rows_of(train(path)) == ROWS
    assert predicted_texts(path) == [text for text, _ in ROWS]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"a.{ending}", b"no table")
    with pytest.raises(SourceError, match=rf"cannot read .*dev\.zip/a\.{ending}"):
        train(path)


def test_files_of_splits_in_a_zip_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "in" / f"{split}.txt", TABS * 4)
    path = zipped(tmp_path / "all.zip", tmp_path / "in")
    splits = load_splits(DataSettings(dataset=str(path)), ["train", "test"], seed=0)
    assert rows_of(splits["test"]) == ROWS * 4


def test_names_in_a_zip_file_from_windows(tmp_path: Path) -> None:
    """Windows writes the names of files in its own encoding; they are labels here."""
    folder, path = class_folder(tmp_path / "news", "gb18030"), tmp_path / "n.zip"
    for place in (3, 4):
        write(folder / "好评" / f"这个人说房间很干净{place}.txt", "也很好")
    files = {file.relative_to(folder).as_posix().encode("gbk"): file for file in folder.rglob("*.txt")}
    stand_ins = {name: str(place) * len(name) for place, name in enumerate(files)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in files.items():
            archive.writestr(stand_ins[name], file.read_bytes())
    raw = path.read_bytes()
    for name, stand_in in stand_ins.items():
        raw = raw.replace(stand_in.encode(), name)
    write(path, raw)
    split = load_splits(DataSettings(dataset=str(path), test_split="train"), ["test"], seed=0)["test"]
    assert set(split.label_names) == {"好评", "差评"}


def test_zip_files_that_do_harm_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dev.zip"
    for name in ("../up.csv", "/etc/top.csv", "..\\up.csv", "C:/top.csv"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "text,label\na,1\n")
        with pytest.raises(SourceError, match="outside"):
            train(path)
    with pytest.raises(SourceError, match="zip"):
        train(write(path, b"PK\x03\x04 cut"))


def test_files_that_unpack_to_far_more_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.data.formats.lines._SMALL", 1 << 20)
    content = b"text,label\n" + b"0" * (5 << 20)
    packed = write(tmp_path / "dev.csv.gz", gzip.compress(content))
    with pytest.raises(SourceError, match="which texts do not"):
        train(packed)
    with zipfile.ZipFile(tmp_path / "dev.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", content)
    with pytest.raises(SourceError, match="which texts do not"):
        train(tmp_path / "dev.zip")


LINES = {
    "dev.csv": ("text,label\na,1\nb,0\nc,1\n", "line 5: longer than 64 MiB"),
    "dev.txt": (TABS, "line 4: longer than 64 MiB"),
    "dev.jsonl": ('{"text": "a", "label": 1}\n', "line 2: longer than 64 MiB"),
    "dev.json": ('[{"text": "a", "label": 1},', "line 1: a value longer than 64 MiB"),
}
LONGER = [pytest.param(name, 2 << 30, marks=pytest.mark.hostile) for name in LINES]


@pytest.mark.parametrize(("name", "size"), [("dev.txt", 65 << 20), *LONGER])
def test_a_line_of_two_gigabytes_is_refused(name: str, size: int, tmp_path: Path) -> None:
    """A sparse file has the line; no more of it is held in memory than a line may have."""
    content, said = LINES[name]
    path = write(tmp_path / name, content)
    with path.open("r+b") as file:
        file.truncate(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match=said):
        train(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_text_of_gigabytes_in_a_class_folder_is_refused(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "news")
    with (folder / "差评" / "2.txt").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(SourceError, match=r"差评/2\.txt is longer than 256 MiB"):
        train(folder)


@pytest.mark.parametrize("name", ["dev.csv", "dev.tsv", "dev.xlsx"])
def test_a_header_alone_has_no_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "dev.xlsx":
        workbook(path, 表=[["text", "label"]])
    else:
        write(path, "text,label\n".replace(",", "\t" if name.endswith("tsv") else ","))
    assert predicted_texts(path) == []
    with pytest.raises(SourceError, match="no rows"):
        train(path)


def test_a_table_of_very_many_columns_is_refused(tmp_path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(100_000))
    with pytest.raises(SourceError, match="100,000 columns; at most 16,384"):
        train(write(tmp_path / "dev.csv", names + "\n" + names + "\n"))
    wide = json.dumps({f"c{n}": n for n in range(20_000)})
    with pytest.raises(SourceError, match="20,000 columns"):
        train(write(tmp_path / "more" / "dev.jsonl", wide))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "values", "table"])
def test_json_in_every_orientation_of_pandas(orient: Any, indent: int | None, tmp_path: Path) -> None:
    frame = pandas.DataFrame(ROWS, columns=["评论", "情感"])
    path = tmp_path / "dev.json"
    frame.to_json(path, orient=orient, indent=indent, force_ascii=False)
    assert rows_of(train(path)) == ROWS
    assert predicted_texts(path) == [text for text, _ in ROWS]
    odd = frame.rename(columns={"评论": "words", "情感": "mood"})
    odd.to_json(path, orient=orient, indent=indent)
    named = {"text_column": "words", "label_column": "mood"} if orient != "values" else {}
    assert rows_of(train(path, **named)) == ROWS


def test_other_objects_with_a_table(tmp_path: Path) -> None:
    lists = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    assert rows_of(train(write(tmp_path / "dev.json", json.dumps(lists)))) == ROWS
    rows = {"version": "1", "data": [{"text": text, "label": label} for text, label in ROWS]}
    assert rows_of(train(write(tmp_path / "dev.json", json.dumps(rows, indent=1)))) == ROWS
    one = write(tmp_path / "dev.json", json.dumps({"text": "a", "label": 1}))
    assert rows_of(train(one)) == [("a", "1")]
    with pytest.raises(SourceError, match="no table is found"):
        train(write(tmp_path / "dev.json", json.dumps({"a": {"b": 1}}, indent=1)))


@pytest.mark.parametrize("how", ["stream", "file", "feather", "saved"])
def test_arrow_files_and_saved_datasets(how: str, tmp_path: Path) -> None:
    frame = pandas.DataFrame(ROWS, columns=["评论", "情感"])
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    path = tmp_path / {"feather": "dev.feather", "saved": "saved"}.get(how, "dev.arrow")
    if how == "saved":
        datasets.Dataset(table).save_to_disk(str(path), num_shards=2)
    elif how == "feather":
        frame.to_feather(path)
    else:
        writer = pyarrow.ipc.new_stream if how == "stream" else pyarrow.ipc.new_file
        with writer(str(path), table.schema) as sink:
            sink.write_table(table)
    assert rows_of(train(path)) == ROWS
    assert predicted_texts(path) == [text for text, _ in ROWS]
    damaged = path / "data-00000-of-00002.arrow" if how == "saved" else path
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(SourceError, match="cannot read"):
        predicted_texts(path)
