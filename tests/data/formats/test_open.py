"""Rows from real files: what is read, what is refused, and what the error says."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featcache.data.formats.lines import ReadLimits
from featcache.data.formats.open import open_rows
from featcache.errors import SourceError
from tests.support.source_files import jsonl, rows_of, train, write, write_rows

pytestmark = pytest.mark.usefixtures("arrow_cache")

NASTY = [
    "NA",
    "null",
    "None",
    "nan",
    "007",
    "1.50",
    'say "hi"',
    '"quoted"',
    '"opens',
    "a, b; c",
    "\U0001f600 \u200d",
    "中文、文本",
    "back\\slash",
    "2020-01-01",
    "true",
    "#5",
    "  padded  ",
    "\u2028line separator",
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_difficult_texts_are_read_as_written(tmp_path: Path, kind: str) -> None:
    texts = NASTY if kind == "tsv" else [*NASTY, "two\nlines", "tab\there", "cr\r\nlf"]
    labels = [i % 2 for i in range(len(texts))]
    split = train(write_rows(tmp_path / f"train.{kind}", texts, labels))
    assert split.texts(range(len(texts))) == texts
    assert split.label_names == ("0", "1")
    assert split.labels.dtype == np.int64 and split.labels.tolist() == labels
    assert split.row_numbers.tolist() == list(range(len(texts)))
    assert split.pairs([0]) is None


any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    str.strip
)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(any_text, min_size=1, max_size=8))
def test_any_texts_are_read_as_written(tmp_path: Path, kind: str, texts: list[str]) -> None:
    split = train(write_rows(tmp_path / f"x.{kind}", texts, [1] * len(texts)))
    assert split.texts(slice(None)) == texts


def test_texts_by_number_slice_and_mask(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(50)]
    split = train(write_rows(tmp_path / "a.csv", texts, [i % 2 for i in range(50)]))
    assert split.texts([7, 3, 3, -1]) == ["text 7", "text 3", "text 3", "text 49"]
    assert split.texts(slice(40, 99)) == texts[40:]
    assert split.texts(np.arange(50) % 2 == 0) == texts[::2]
    assert split.texts([]) == []
    with pytest.raises(IndexError):
        split.texts([50])
    sizes = [len(batch) for batch, _ in split.batches(20)]
    assert sizes == [20, 20, 10]
    assert [text for batch, _ in split.batches(20) for text in batch] == texts


def test_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "train.csv.gz"
    path.write_bytes(gzip.compress(codecs.BOM_UTF8 + "text,label\n好,1\n坏,0\n".encode()))
    assert rows_of(train(path)) == [("好", "1"), ("坏", "0")]
    bom = write(tmp_path / "b.jsonl", codecs.BOM_UTF8 + jsonl({"text": "a", "label": 1}).encode())
    assert rows_of(train(bom)) == [("a", "1")]
    cut = write(tmp_path / "cut.csv.gz", path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"cut\.csv\.gz.*cut short"):
        train(cut)


@pytest.mark.parametrize(
    "content",
    [
        '"opens here\t1\nplain\t0\ncloses here"\t1\n',
        'he said "no"\t1\nplain\t0\n"whole"\t1\n',
        'text\tlabel\n"a quoted review"\t1\nplain\t0\n',
    ],
)
def test_stray_quotes_of_a_tsv_file_are_characters(tmp_path: Path, content: str) -> None:
    lines = [line for line in content.splitlines() if not line.startswith("text\t")]
    split = train(write(tmp_path / "train.tsv", content))
    assert rows_of(split) == [tuple(line.split("\t")) for line in lines]


@pytest.mark.parametrize(
    "content",
    [
        'text\tlabel\n"say ""hi"""\t1\nplain\t0\n',
        '"text"\t"label"\n"say hi"\t"1"\n"plain"\t"0"\n',
        'text\tlabel\n"two\nlines"\t1\nplain\t0\n',
    ],
)
def test_quotes_of_a_tsv_file_that_a_csv_writer_wrote_are_removed(tmp_path: Path, content: str) -> None:
    texts = train(write(tmp_path / "train.tsv", content)).texts([0, 1])
    assert texts in (['say "hi"', "plain"], ["say hi", "plain"], ["two\nlines", "plain"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "a stirring film\t1\none long string\t0\nNA\t1\n"),
        ("b.tsv", "1\ta stirring film\n0\tone long string\n1\tNA\n"),
        ("c.csv", '"a stirring film",1\none long string,0\nNA,1\n'),
        ("d.csv", "a stirring film,y\none long string,n\nNA,y\n"),
        ("e.csv", "a stirring film;1\r\none long string;0\r\nNA;1\r\n"),
    ],
)
def test_files_without_a_header(tmp_path: Path, name: str, content: str) -> None:
    split = train(write(tmp_path / name, content))
    assert split.texts(slice(None)) == ["a stirring film", "one long string", "NA"]
    assert len(set(split.labels)) == 2 and split.labels[0] == split.labels[2]


def test_a_header_of_unknown_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "utter,mood\nhi,good\nho,bad\nhu,good\n")
    with pytest.raises(SourceError, match="'utter', 'mood'") as caught:
        train(path)
    assert caught.value.hint is not None and "--label-column" in caught.value.hint
    split = train(path, text_column="Utter", label_column="mood")
    assert rows_of(split) == [("hi", "good"), ("ho", "bad"), ("hu", "good")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text,label\na,1\nb\n", r"line 3: 1 fields"),
        ("b.csv", "text,label\na,1\nb,c,0\n", r"line 3: 3 fields"),
        ("c.csv", 'text,label\na,1\n"never closed,0\n', r"line 3: a quote that is never closed"),
        ("d.tsv", "text\tlabel\na\t1\nb", r"line 3: 1 fields"),
        ("e.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "la', r"line 2: not valid JSON"),
        ("f.jsonl", "[1, 2]\n", r"line 1: not a JSON object"),
        ("g.json", '[{"text": "a", "label"', r"not valid JSON"),
        ("h.parquet", "PAR1 but not really", r"cannot read"),
        ("i.csv", "", r"is empty"),
        ("j.csv", "text,text\na,1\n", r"twice: text"),
        ("k.csv", b"text,label\n\xc4\xe3\xe4,1\n", r"k\.csv, line 2: not UTF-8 at character 1"),
        (
            "l.csv",
            b"text,label\n" + b"abcdefghijklm,1\n" * 70_000 + b"\xff,1\n",
            r"line 70002: not UTF-8 at character 1",
        ),
        ("m.csv", "text,label\n", r"no rows"),
        ("n.txt", "a\n", r"its lines have no labels"),
    ],
)
def test_broken_files_name_file_and_place(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        train(write(tmp_path / name, content))
    assert name in str(caught.value)


def test_long_fields_and_the_csv_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "x" * 200_000
    assert train(write_rows(tmp_path / "a.csv", [long, "b"], [0, 1])).texts([0]) == [long]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_changed_file_is_read_again(tmp_path: Path, kind: str) -> None:
    path = write_rows(tmp_path / f"a.{kind}", ["old text", "b"], [0, 1])
    stamp = path.stat()
    assert train(path).texts([0]) == ["old text"]
    write_rows(path, ["new text", "b"], [0, 1])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_mtime_ns == stamp.st_mtime_ns and path.stat().st_size == stamp.st_size
    assert train(path).texts([0]) == ["new text"]


def test_an_unchanged_file_is_converted_once(tmp_path: Path, monkeypatch: Any) -> None:
    path = write_rows(tmp_path / "a.csv", ["a", "b"], [0, 1])
    first = train(path)
    monkeypatch.setattr("featcache.data.arrow_table._examples", lambda *_: pytest.fail("converted again"))
    assert rows_of(train(path)) == rows_of(first)


def test_open_rows_makes_smaller_batches_of_long_texts() -> None:
    content = "".join(("x" * size) + "\n" for size in (10, 990, 1, 5000, 3, 3))
    batches = list(
        open_rows(io.BytesIO(content.encode()), "txt", limits=ReadLimits(batch_chars=1000)).batches
    )
    assert [len(batch.rows) for batch in batches] == [2, 2, 2]


@given(st.binary(max_size=400), st.sampled_from(["csv", "tsv", "jsonl", "txt"]))
def test_open_rows_of_any_bytes(content: bytes, kind: str) -> None:
    """Rows come out numbered one by one, each with texts or a problem; nothing else happens."""
    head = {"csv": b"id,text\n", "tsv": b"id\ttext\n", "jsonl": b'{"text": "a"}\n', "txt": b""}[kind]
    try:
        opened = open_rows(io.BytesIO(head + content), kind)
        rows = [row for batch in opened.batches for row in batch.rows]
    except SourceError:
        return
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert all(bool(row.text.strip()) != bool(row.problem) for row in rows)
    for row in rows:
        row.text.encode("utf-8")


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=12))
def test_open_rows_of_what_a_csv_writer_wrote(rows: list[tuple[str, str]]) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([("id", "text"), *rows])
    try:
        content = out.getvalue().encode()
    except UnicodeEncodeError:
        return
    if "\r" in out.getvalue() or "\0" in out.getvalue():
        return  # a bare carriage return ends a line for one reader and not for another
    found = [row for batch in open_rows(io.BytesIO(content), "csv").batches for row in batch.rows]
    assert [(row.values or {}).get("text") for row in found] == [text for _, text in rows]
