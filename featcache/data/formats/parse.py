"""Columns and rows of one file of any kind but parquet, for training and for prediction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from featcache.data.formats.class_folder import folder_rows
from featcache.data.formats.delimited import DelimitedLayout, columns_of, delimited_rows, read_layout
from featcache.data.formats.encodings import UTF8, encoding_name
from featcache.data.formats.excel import excel_rows
from featcache.data.formats.json_documents import document_rows
from featcache.data.formats.json_rows import json_rows
from featcache.data.formats.lines import PLACES, DataPath, Lines, ReadLimits, Row
from featcache.data.formats.text_lines import fasttext_rows, is_fasttext, plain_rows, tab_layout
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings

_JSON_HINT = 'one object a row, as JSON lines or in one array, e.g. {"text": "...", "label": 1}'
_MOST_COLUMNS = 16_384  # as many as Excel has
_TABLE_HINT = (
    "the file is cut short there, or a text holds the delimiter or a quote;"
    ' a double quote inside a quoted text is written twice: ""'
)


@dataclass(frozen=True)
class ReadOptions:
    """What is known of a file beside its bytes.

    Attributes:
        header: False: a csv or tsv file has none.
        quoted: whether the quotes of a csv or tsv file are markup, where that is known.
        limits: of memory.
    """

    header: bool = True
    quoted: bool | None = None
    limits: ReadLimits = field(default_factory=ReadLimits)


@dataclass(frozen=True)
class ParsedFile:
    """The columns of a file and its rows, to be read once.

    Attributes:
        layout: of csv and tsv files.
        array: the rows are the values of one JSON array.
        codec: of the encoding, in Python.
        hint: what may be wrong where a row is broken.
        lines: that the rows are read from, where there are lines.
    """

    columns: list[str]
    rows: Iterator[Row]
    layout: DelimitedLayout | None = None
    array: bool = False
    codec: str = UTF8
    hint: str = _TABLE_HINT
    lines: Lines | None = None

    def close(self) -> None:
        if self.lines is not None:
            self.lines.close()

    @property
    def consumed(self) -> int:
        """Bytes read so far; 0 where that is not known."""
        return self.lines.consumed if self.lines is not None else 0

    def read_as(self, name: str) -> str:
        """What the user is told of an encoding that is not UTF-8."""
        return "" if self.codec == UTF8 else f"{name} is read as {encoding_name(self.codec)}"


def parse_file(
    source: DataPath | BinaryIO, name: str, kind: str, data: DataSettings, options: ReadOptions
) -> ParsedFile:
    """Open a file of any kind but parquet.

    Raises:
        SourceError: the file is empty, cannot be read, or is broken where it begins.
        UsageError: the kind cannot be read from a stream.
    """
    if kind in ("xlsx", "folder"):
        if not isinstance(source, PLACES):
            raise UsageError(f"{name}: a {kind} is not read from a stream", hint="give its path")
        if kind == "xlsx":
            columns, rows = excel_rows(source, name, data, options.limits, header=options.header)
            return ParsedFile(columns, rows)
        rows, codec = folder_rows(source, data.encoding, options.limits)
        return ParsedFile(["text", "label", "file"], rows, codec=codec)
    lines = Lines(source, name, options.limits, data.encoding)
    try:
        return _parse_lines(lines, kind, data, options)
    except BaseException:
        lines.close()
        raise


def _parse_lines(lines: Lines, kind: str, data: DataSettings, options: ReadOptions) -> ParsedFile:
    layout: DelimitedLayout | None = None
    if kind in ("csv", "tsv"):
        layout = read_layout(lines, data, tabs=kind == "tsv", header=options.header, quoted=options.quoted)
    elif kind == "txt":
        layout = tab_layout(lines)
    if layout is not None:
        _check_width(layout.columns, lines.name)
        rows = delimited_rows(lines, layout)
        return ParsedFile(layout.columns, rows, layout, codec=lines.codec, lines=lines)
    if kind == "txt":
        if is_fasttext(lines):
            return ParsedFile(["text", "label"], fasttext_rows(lines), codec=lines.codec, lines=lines)
        return ParsedFile(["text"], plain_rows(lines), codec=lines.codec, lines=lines)
    return _parse_json(lines, data)


def _parse_json(lines: Lines, data: DataSettings) -> ParsedFile:
    array = lines.first_mark() == "["
    document = None if array else document_rows(lines, data)
    if document is not None:
        rows: Iterator[Row] = (Row(number, number, values) for number, values in enumerate(document, 1))
    else:
        rows = json_rows(lines, array=array)
    sample, chars = list[Row](), 0
    while len(sample) < lines.limits.sample_rows and chars <= lines.limits.row_chars:
        if (row := next(rows, None)) is None:
            break
        sample.append(row)
        chars += row_chars(row)
    if not sample:
        raise SourceError(f"{lines.name} is empty", hint="leave it out, or name a file with rows")
    if array and all(isinstance(row.values, dict) and list(row.values) == _numbered(row) for row in sample):
        sample, rows = _with_names(sample, rows, lines.name, data)
    columns = list(dict.fromkeys(itertools.chain.from_iterable(row.values or () for row in sample)))
    if not columns:
        first = f"line {sample[0].line}: {sample[0].problem or 'an empty object'}"
        raise SourceError(f"{lines.name} has no JSON objects with columns; {first}", hint=_JSON_HINT)
    _check_width(columns, lines.name)
    return ParsedFile(
        columns, itertools.chain(sample, rows), array=array, codec=lines.codec, hint=_JSON_HINT, lines=lines
    )


def row_chars(row: Row) -> int:
    return sum(len(value) for value in (row.values or {}).values() if isinstance(value, str))


def _check_width(columns: list[str], name: str) -> None:
    if len(columns) > _MOST_COLUMNS:
        raise SourceError(
            f"{name} has {len(columns):,} columns; at most {_MOST_COLUMNS:,} are read",
            hint="a table of texts has one row for each text; is it turned, or are line ends missing?",
        )


def _numbered(row: Row) -> list[str]:
    """The columns of a row that is a list."""
    return [f"column{place}" for place in range(1, len(row.values or ()) + 1)]


def _with_names(
    sample: list[Row], rows: Iterator[Row], name: str, data: DataSettings
) -> tuple[list[Row], Iterator[Row]]:
    """Rows that are lists, with the names that the columns of a csv file without a header get."""
    fields = [[str(value) for value in (row.values or {}).values()] for row in sample]
    columns, headed = columns_of(fields, name, data, header=True)
    if headed or len({len(row) for row in fields}) > 1:
        return sample, rows  # no label is seen in them: they are column1, column2, ...

    def named(row: Row) -> Row:
        if row.values is not None:
            row.values = dict(zip(columns, row.values.values(), strict=False))
        return row

    return [named(row) for row in sample], map(named, rows)
