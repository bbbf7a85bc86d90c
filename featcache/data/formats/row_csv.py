"""Rows of csv and tsv files: one quote that is never closed costs its line, not the rest of the file."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from featcache.data.columns import USUAL_NAMES
from featcache.data.formats.row_lines import (
    LINE_BYTES,
    Lines,
    Row,
    RowFile,
    checked_row,
    chunked,
    text_columns,
    unreadable,
)
from featcache.errors import SourceError
from featcache.settings import DataSettings

RECORD_CHARS = 1 << 20  # a quoted field that spans lines ends before this, or its quote is a stray one
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_AS_UTF8 = "save it as UTF-8, e.g.: iconv -f GB18030 -t UTF-8 OLD > NEW"
_CSV_ERRORS = {
    "unexpected end of data": "a quote that is never closed",
    "',' expected after '\"'": 'a quote in a quoted text that is not written twice: ""',
}


def delimited(lines: Lines, found: RowFile, data: DataSettings, header: bool) -> RowFile:
    """The rows of a csv or tsv file; `found` says which, the first lines say what stands between fields."""
    sample = [text for text in lines.sample() if text.strip()]
    if not sample:
        raise SourceError(f"{found.name} is empty")
    if wrong := unreadable(sample[0]):
        raise SourceError(f"{found.name}: the first line is {wrong}", hint=_AS_UTF8)
    marks = "\t" if found.kind == "tsv" else ",\t;"
    mark = next((mark for mark in marks if mark in sample[0]), marks[0])
    plain = mark == "\t" and _tabs_are_plain(sample)
    records = _plain_records(lines) if plain else _quoted_records(lines, mark)
    columns = _header(records, found.name, data) if header else []
    first = None if header else next(records)
    if first is not None:
        columns = [f"column{place}" for place in range(1, len(first[1] or [""]) + 1)]
        records = itertools.chain([first], records)
    if len(columns) == 1:
        data = replace(data, text_column=columns[0])
    text, pair = text_columns(columns, data, found.name)

    def rows() -> Iterator[Row]:
        for number, (line, fields, wrong) in enumerate(_whole(records, lines, len(columns)), 1):
            if fields is None:
                yield Row(number, line, None, problem=wrong)
            else:
                yield checked_row(number, line, dict(zip(columns, fields, strict=True)), text, pair)

    chunks = chunked(lines, rows())
    return replace(found, columns=columns, text=text, pair=pair, chunks=chunks, plain_tabs=plain)


def _tabs_are_plain(sample: Sequence[str]) -> bool:
    """Whether a quote in a tab-separated file is just a character: by the rule of `readers`, on a sample."""
    fields = [text.rstrip("\r\n").split("\t") for text in sample]
    marked = [{place for place, text in enumerate(line) if '"' in text} for line in fields]
    texts = [line[place] for line, places in zip(fields, marked, strict=True) for place in places]
    stray = not all(map(_QUOTED.fullmatch, texts))
    written = any('"' in text[1:-1] for text in texts) or bool(set.intersection(*marked))
    return len({len(line) for line in fields}) == 1 and (stray or not written)


_Record = tuple[int, list[str] | None, str | None, list[tuple[int, str]]]


def _plain_records(lines: Lines) -> Iterator[_Record]:
    for number, raw in lines:
        if text := raw.rstrip("\r\n"):
            yield number, text.split("\t"), None, []


def _quoted_records(lines: Lines, mark: str) -> Iterator[_Record]:
    """First line, fields, what is wrong, and the further lines a record took, for who wants them back."""
    taken: list[tuple[int, str]] = []

    def feed() -> Iterator[str]:
        chars = 0
        for number, text in lines:
            chars = len(text) + (chars if taken else 0)
            taken.append((number, text))
            if len(taken) > 1 and chars > RECORD_CHARS:
                raise csv.Error("a quote that is never closed")
            yield text

    def parser() -> Any:
        return csv.reader(feed(), delimiter=mark, strict=True)

    reader = parser()
    before = csv.field_size_limit()
    while True:
        taken.clear()
        csv.field_size_limit(max(LINE_BYTES, RECORD_CHARS) + 1)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            reader = parser()
            yield taken[0][0], None, _CSV_ERRORS.get(str(error), str(error)), taken[1:]
            continue
        finally:
            csv.field_size_limit(before)  # the limit is the process's
        if fields is None:
            return
        if fields:
            yield taken[0][0], fields, None, taken[1:]


def _whole(
    records: Iterator[_Record], lines: Lines, width: int
) -> Iterator[tuple[int, list[str] | None, str | None]]:
    """Records with as many fields as the first line; of any other only its first line is given up."""
    for number, fields, wrong, more in records:
        if fields is not None:
            wrong = next((said for said in map(unreadable, fields) if said), None)
            if len(fields) != width:
                wrong = f"{len(fields)} fields; the first line has {width}"
        if wrong is not None:
            lines.put_back(more)
        yield number, None if wrong else fields, wrong


def _header(records: Iterator[_Record], name: str, data: DataSettings) -> list[str]:
    _, fields, wrong, _ = next(records)
    if fields is None:
        raise SourceError(f"{name}: the first line cannot be read: {wrong}")
    columns = [text.strip() or f"column{place}" for place, text in enumerate(fields, 1)]
    if twice := sorted({one for one in columns if columns.count(one) > 1}):
        raise SourceError(f"{name}: the first line names a column twice: {', '.join(twice)}")
    named = {one.lower() for one in (data.text_column, data.pair_column) if one}
    if not any(one.lower() in USUAL_NAMES or one.lower() in named for one in columns):
        raise SourceError(
            f"{name}: the first line names no column of texts: {', '.join(columns)[:200]}",
            hint="name it with --text-column, or say --no-header if that line is a row",
        )
    return columns
