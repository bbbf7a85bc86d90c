"""The rows of a file whose texts are to be labelled, a chunk at a time, with all their columns.

Unlike `readers`, which stop at the first broken row because a training set must be whole, what is here
goes on past it: a row that cannot be used carries what is wrong with it. Memory is bounded by the
constants of `row_lines`, whatever the file holds, and a stream that cannot be rewound will do.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from featcache.data.formats import row_lines
from featcache.data.formats.readers import first_line, reading
from featcache.data.formats.row_csv import delimited
from featcache.data.formats.row_lines import (
    Chunk,
    Lines,
    Row,
    RowFile,
    Values,
    checked_row,
    chunked,
    text_columns,
    unreadable,
)
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings

KINDS = ("csv", "tsv", "json", "jsonl", "parquet", "txt")
ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
           ".parquet": "parquet", ".txt": "txt"}  # fmt: skip


def kind_of(path: Path) -> str | None:
    """By the ending, `.gz` aside; None for another one."""
    return ENDINGS.get(Path(path.name.lower().removesuffix(".gz")).suffix)


def open_rows(
    source: Path | BinaryIO,
    kind: str,
    columns: DataSettings | None = None,
    *,
    header: bool = True,
    groups: range | None = None,
) -> RowFile:
    """Open a file, or a stream of bytes, for reading once from its beginning.

    Args:
        source: a path (`.gz` is unpacked), or a binary stream such as `sys.stdin.buffer`.
        kind: one of KINDS.
        columns: `text_column` and `pair_column` count; by default the usual names.
        header: False: a csv or tsv file begins with a row, its columns are column1, column2, ...
        groups: of a parquet file, the row groups to read; by default all.

    Raises:
        SourceError: empty, unreadable, or without a column of texts.
    """
    data = columns or DataSettings()
    name = str(source) if isinstance(source, Path) else "standard input"
    if kind == "parquet":
        return _parquet(source, name, data, groups)
    lines = Lines(source, name)
    with reading(Path(name)):
        array = kind in ("json", "jsonl") and lines.are_array()
        return _READERS[kind](
            Values(lines) if array else lines,
            RowFile(kind, name, [], "", None, iter(()), size=lines.size, array=array),
            data,
            header,
        )


# --- txt and json -------------------------------------------------------------------------


def _txt(lines: Lines, found: RowFile, data: DataSettings, header: bool) -> RowFile:
    def rows() -> Iterator[Row]:
        for number, raw in lines:
            text = raw.rstrip("\r\n")
            wrong = unreadable(text)
            made = checked_row(number, number, {"text": text}, "text", None)
            yield Row(number, number, None, problem=wrong) if wrong else made

    if data.pair_column is not None:
        raise UsageError("--pair-column: a txt file has no columns")
    return replace(found, columns=["text"], text="text", chunks=chunked(lines, rows()))


def _jsonl(lines: Lines, found: RowFile, data: DataSettings, header: bool) -> RowFile:
    sample = [text for text in lines.sample() if text.strip()]
    if not sample:
        raise SourceError(f"{found.name} is empty")
    parsed = (_parsed(text)[0] or {} for text in sample)
    columns = list(dict.fromkeys(itertools.chain.from_iterable(parsed)))
    if not columns:
        raise SourceError(f"{found.name} holds no JSON objects", hint='one a line, e.g. {"text": "..."}')
    text, pair = text_columns(columns, data, found.name)

    def rows() -> Iterator[Row]:
        numbers = itertools.count(1)
        for line, raw in lines:
            if raw.strip():
                values, wrong = _parsed(raw)
                number = next(numbers)
                made = Row(number, line, None, problem=wrong)
                yield made if values is None else checked_row(number, line, values, text, pair)

    return replace(found, columns=columns, text=text, pair=pair, chunks=chunked(lines, rows()))


def _parsed(raw: str) -> tuple[dict[str, Any] | None, str | None]:
    """The object of one line, or what is wrong with it."""
    if wrong := unreadable(raw):
        return None, wrong
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON: {first_line(error)}"
    return (value, None) if isinstance(value, dict) else (None, f"not a JSON object but {raw.strip()[:40]}")


# --- parquet ------------------------------------------------------------------------------------


def _parquet(source: Path | BinaryIO, name: str, data: DataSettings, groups: range | None) -> RowFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(source, Path):
        raise UsageError("a parquet file cannot be read from standard input", hint="give its path")
    try:
        with reading(source):
            file = pq.ParquetFile(source)
    except pa.ArrowException as error:
        raise SourceError(f"cannot read {name}: {first_line(error)}") from None
    schema = file.schema_arrow
    text, pair = text_columns(schema.names, data, name)
    for column in (text, pair):
        kind = schema.field(column).type if column is not None else pa.string()
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise SourceError(f"column {column!r} of {name} holds {kind}, not text", hint=_NAME_IT)
    groups = range(file.num_row_groups) if groups is None else groups
    sizes = [file.metadata.row_group(group).num_rows for group in range(groups.stop)]
    first, total = sum(sizes[: groups.start]), sum(sizes[groups.start :])
    chunks = _table_chunks(file, name, text, pair, groups, first)
    return RowFile("parquet", name, list(schema.names), text, pair, chunks, total, schema=schema, first=first)


def _table_chunks(
    file: Any, name: str, text: str, pair: str | None, groups: range, first: int
) -> Iterator[Chunk]:
    import pyarrow as pa

    digest, number = hashlib.sha256(), itertools.count(first + 1)
    wanted = [text] if pair is None else [text, pair]
    try:
        for batch in file.iter_batches(batch_size=row_lines.CHUNK_ROWS, row_groups=list(groups)):
            digest.update(batch.serialize())
            try:
                values = batch.select(wanted).to_pylist()
            except UnicodeDecodeError:
                values = [_decoded(batch, row, wanted) for row in range(len(batch))]
            places = [next(number) for _ in values]
            rows = [checked_row(n, n, one, text, pair) for n, one in zip(places, values, strict=True)]
            yield Chunk(rows, digest.hexdigest(), table=pa.Table.from_batches([batch]))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"cannot read {name}: {first_line(error)}") from None


def _decoded(batch: Any, row: int, columns: Sequence[str]) -> dict[str, Any]:
    """Texts of one row of a file that calls something a string that is none."""
    found: dict[str, Any] = {}
    for column in columns:
        try:
            found[column] = batch.column(column)[row].as_py()
        except UnicodeDecodeError:
            found[column] = "\udcff"
    return found


_NAME_IT = "name the column with the text: --text-column"
_READERS = {"txt": _txt, "json": _jsonl, "jsonl": _jsonl, "csv": delimited, "tsv": delimited}
