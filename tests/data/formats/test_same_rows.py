"""Training and prediction read the same rows from a file in any format."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featcache.data.formats.lines import ReadLimits, Row
from featcache.data.formats.open import kind_of, open_rows
from featcache.errors import SourceError
from featcache.fingerprint import row_hashes
from featcache.settings import DataSettings
from tests.support.source_files import jsonl, train, write

pytestmark = pytest.mark.usefixtures("arrow_cache")

CELLS = [
    "NA", "null", "nan", "007", "1.50", "0", "1", "text", "label", "", " ", "  padded ", "中文、文本",
    'say "hi"', '"', '"opens', 'closes"', '""', '"whole"', "a, b; c", "tab\there", "two\nlines", "cr\r\nlf",
    "bare\rcr", "\u2028separator", "\ufeffbom", "back\\slash", "\U0001f600\u200d", "[1]", '{"a": 1}',
]  # fmt: skip
LABELS = ["0", "1", "是", "否", "NA", "good", ""]


@dataclass
class WrittenTable:
    """A table as a file, and whether every reader must find exactly these rows in it."""

    name: str
    content: bytes
    rows: list[list[str]]
    exact: bool
    encoding: str | None = None


@st.composite
def tables(draw: st.DrawFn) -> WrittenTable:
    """Tables of texts (or pairs) and labels in every format, quoted well, badly or not at all."""
    kind = draw(st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet"]))
    pair = draw(st.booleans())
    names = ["sentence1", "sentence2", "label"] if pair else ["text", "label"]
    cell = st.sampled_from(CELLS) | st.text(st.sampled_from('a"好\t,;\n\r \ufeff0'), max_size=6)
    row = st.tuples(*[cell] * (len(names) - 1), st.sampled_from(LABELS)).map(list)
    rows = draw(st.lists(row, min_size=1, max_size=6))
    bom = codecs.BOM_UTF8 if draw(st.booleans()) else b""
    if kind in ("csv", "tsv"):
        content, exact = _delimited(draw, kind, names, rows)
        content = bom + content.encode()
    elif kind == "parquet":
        sink = io.BytesIO()
        columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
        pq.write_table(pa.table(columns), sink, row_group_size=draw(st.integers(1, 4)))
        content, exact = sink.getvalue(), True
    else:
        objects = [dict(zip(names, row, strict=True)) for row in rows]
        if draw(st.booleans()):
            text = jsonl(*objects)
        else:
            text = json.dumps(objects, indent=draw(st.sampled_from([None, 1])), ensure_ascii=False)
        content, exact = bom + text.encode(), True
    encoding = None if kind == "parquet" else draw(st.sampled_from([None, None, "gb18030", "utf-16"]))
    if encoding is not None:
        content = content.removeprefix(codecs.BOM_UTF8).decode().encode(encoding)
    if kind != "parquet" and draw(st.booleans()):
        return WrittenTable(f"dev.{kind}.gz", gzip.compress(content), rows, exact, encoding)
    return WrittenTable(f"dev.{kind}", content, rows, exact, encoding)


def _delimited(draw: st.DrawFn, kind: str, names: list[str], rows: list[list[str]]) -> tuple[str, bool]:
    delimiter = "\t" if kind == "tsv" else draw(st.sampled_from([",", ";", "\t"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    header = draw(st.booleans())
    lines = [names, *rows] if header else rows
    style = draw(st.sampled_from(["all", "minimal", "none"]))
    if style == "none":  # quotes and delimiters in cells are not marked
        return end.join(delimiter.join(line) for line in lines) + draw(st.sampled_from(["", end])), False
    out = io.StringIO()
    quoting = csv.QUOTE_ALL if style == "all" else csv.QUOTE_MINIMAL
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(lines)
    # Without a header, or with other delimiters in the header's cells, a reader has to guess.
    return out.getvalue(), header and style == "all" and delimiter in (",", "\t")


def read_for_prediction(
    path: Path, limits: ReadLimits | None = None, **settings: Any
) -> tuple[list[Row], str]:
    """All rows of a file, and the name of its label column."""
    file = open_rows(path, kind_of(path) or "", DataSettings(**settings), limits=limits)
    rows = [row for batch in file.batches for row in batch.rows]
    if file.schema is not None:  # parquet files keep the other columns as Arrow has them
        for row, values in zip(rows, pq.read_table(path).to_pylist(), strict=True):
            row.values = values
    return rows, "label" if "label" in file.columns else file.columns[-1]


def same_rows(path: Path, **settings: Any) -> list[str] | None:
    """Compare texts, labels and row hashes of both ways; the texts, None where training refuses the file."""
    try:
        split = train(path, skip_bad_rows=True, **settings)
    except SourceError as error:
        if "label" in error.what:  # prediction needs none
            return None
        try:
            rows, label = read_for_prediction(path, **settings)
        except SourceError:
            return None
        usable = [row for row in rows if row.problem is None and _label(row, label)]
        assert not usable or any(row.values is None for row in rows)
        return None
    rows, label = read_for_prediction(path, **settings)
    assert all(row.values is not None for row in rows)  # training refuses a file with a broken row
    labels = [_label(row, label) for row in rows]
    kept = [n for n, row in enumerate(rows) if row.problem is None and labels[n]]
    assert split.row_numbers.tolist() == kept
    texts, pairs = split.texts(slice(None)), split.pairs(slice(None))
    assert texts == [rows[n].text for n in kept]
    assert pairs == (None if pairs is None else [rows[n].pair for n in kept])
    found = [split.label_names[code] for code in split.labels]
    assert [_number(name) for name in found] == [_number(labels[n]) for n in kept]
    seconds = None if pairs is None else [rows[n].pair or "" for n in kept]
    np.testing.assert_array_equal(row_hashes(texts, pairs), row_hashes([rows[n].text for n in kept], seconds))
    return texts


def _label(row: Row, column: str) -> str:
    value = (row.values or {}).get(column)
    return "" if value is None else str(value).strip()


def _number(name: str) -> str:
    """Labels that are all numbers are compared by their values."""
    return str(int(name)) if name.isdigit() else name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(table=tables())
def test_training_and_prediction_read_the_same_rows(tmp_path: Path, table: WrittenTable) -> None:
    texts = same_rows(write(tmp_path / table.name, table.content), encoding=table.encoding)
    if table.exact and texts is not None:
        usable = [row[0] for row in table.rows if row[0].strip() and row[-1].strip()]
        assert texts == usable


def test_all_lines_decide_about_the_quotes_of_a_tsv_file(tmp_path: Path) -> None:
    """One stray quote after line 1,024 makes all quotes characters of the texts, for prediction too."""
    quoted = [f'"say ""{n}"""\t{n % 2}\n' for n in range(1100)]
    path = write(tmp_path / "dev.tsv", "text\tlabel\n" + "".join(quoted))
    assert same_rows(path) == [f'say "{n}"' for n in range(1100)]
    quoted[1050] = 'a 5" disk\t0\n'
    path = write(tmp_path / "dev.tsv", "text\tlabel\n" + "".join(quoted))
    assert same_rows(path) == [line.split("\t")[0] for line in quoted]
    stream = open_rows(io.BytesIO(path.read_bytes()), "tsv")
    rows = [row.text for batch in stream.batches for row in batch.rows]
    assert rows == [line.split("\t")[0] for line in quoted]  # a stream is copied to decide


def test_a_file_without_a_header_is_read_without_a_flag(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.csv", "一本好书,1\n一部坏电影,0\n还行,1\n")
    assert same_rows(path) == ["一本好书", "一部坏电影", "还行"]
    file = open_rows(path, "csv")
    assert (file.columns, file.text) == (["text", "label"], "text")
    forced = open_rows(path, "csv", DataSettings(text_column="column1"), header=False)
    assert forced.columns == ["column1", "column2"]


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("dev.csv", "text,label\rgood,1\rbad,0\r", ["good", "bad"]),  # line ends of old programs
        ("dev.csv", "\n" * 2000 + "text,label\ngood,1\n", ["good"]),  # blank lines before the header
        ("dev.csv", "title,headline,label\ngood,x,1\n", None),
        ("dev.csv", 'text,label\n"' + "two\nlines" * 200_000 + '",1\n', ["two\nlines" * 200_000]),
        ("dev.jsonl", '{"text": "' + "x" * (17 << 20) + '", "label": 1}', ["x" * (17 << 20)]),
        ("dev.json", '\n\n [{"text": "good", "label": 1}, {"text": "bad", "label": 0},]', ["good", "bad"]),
        ("dev.jsonl", '{"title": "t", "label": 1}\n' * 1010 + '{"text": "a", "label": 1}\n', ["t"] * 1010),
        ("dev.csv", "sentence1,sentence2,label\ngood,,1\nbad,book,0\n", ["good", "bad"]),  # an empty pair
    ],
)
def test_files_on_which_the_readers_differed(
    name: str, content: str, texts: list[str] | None, tmp_path: Path
) -> None:
    assert same_rows(write(tmp_path / name, content)) == texts


def test_the_label_column_of_the_settings_is_no_text_column(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.csv", "title,headline\ngood,1\nbad,0\n")
    data = DataSettings(label_column="title")
    assert open_rows(path, "csv", data).text == "headline"
    assert train(path, label_column="title").texts([0]) == ["1"]
    assert (
        open_rows(path, "csv", DataSettings(text_column="headline", label_column="gone")).text == "headline"
    )


@pytest.mark.parametrize("header", ["sentence", "label\tsentence", "sentence\tlabel"])
def test_lines_of_a_txt_file_are_texts(header: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", f'{header}\r\n"quoted"\r\nNA\r\n\r\nbare\rcr\n')
    rows, _ = read_for_prediction(path)
    assert [row.text for row in rows] == [header, '"quoted"', "NA", "", "bare\rcr"]
    assert [row.line for row in rows] == [1, 2, 3, 4, 5]


def test_open_rows_uses_what_was_found_about_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"quoted"\t1\n5" disk\t0\n')
    first = open_rows(path, "tsv")
    assert first.quotes is not None and not first.quotes.quoted

    def refuse(*_: object) -> Callable[..., bool]:
        raise AssertionError("all lines were read once more")

    monkeypatch.setattr("featcache.data.formats.delimited._tabs_are_plain", refuse)
    again = open_rows(path, "tsv", quotes=first.quotes)
    assert [row.text for batch in again.batches for row in batch.rows] == ['"quoted"', '5" disk']
    path.write_text(path.read_text() + "more\t1\n")
    with pytest.raises(AssertionError, match="once more"):
        open_rows(path, "tsv", quotes=first.quotes)
