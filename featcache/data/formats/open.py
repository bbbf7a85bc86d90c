"""Opens files of rows, for training, where the first broken row is an error, and for prediction.

Both use the parsers of this package, so that a file has the same rows for both. Prediction goes on after a
broken row; memory is bounded by `ReadLimits`, and a stream that cannot be rewound is read as well.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, cast

from featcache.data.columns import USUAL_NAMES, ReadColumns, pick_text_columns
from featcache.data.formats.archive import only_file
from featcache.data.formats.encodings import NAME_IT, UTF8, encoding_name
from featcache.data.formats.lines import DataPath, ReadLimits, Row, reading
from featcache.data.formats.parquet import (
    TableFile,
    batch_values,
    class_names,
    is_saved_dataset,
    record_batches,
)
from featcache.data.formats.parse import ParsedFile, ReadOptions, parse_file, row_chars
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings
from featcache.system.text import check_text

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = {
    ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".txt": "txt",
    ".xlsx": "xlsx", ".xls": "xlsx", ".zip": "zip",
}  # fmt: skip
KINDS = ("csv", "tsv", "json", "jsonl", "parquet", "txt")  # that are written, too
_TABLES = ("parquet", "arrow")  # of record batches
DATA_ENDINGS = tuple(ending for ending in ENDINGS if ending != ".zip")
_TXT_HINT = "a line is text<TAB>label, label<TAB>text, or __label__x text as in fastText"
_NAME_IT = "name the column with the text: --text-column"


def kind_of(path: DataPath) -> str | None:
    """One of KINDS, or of what is read alone: arrow, xlsx, zip, folder; None for another ending."""
    if isinstance(path, zipfile.Path) and path.is_dir():
        return "folder"
    name = path.name.lower()
    kind = ENDINGS.get(Path(name.removesuffix(".gz")).suffix)
    if name.endswith(".gz") and kind in ("parquet", "arrow", "xlsx", "zip"):
        return None
    if kind is None and isinstance(path, Path) and is_saved_dataset(path):
        return "arrow"
    return "folder" if kind is None and path.is_dir() else kind


def is_data_file(path: DataPath) -> bool:
    """Whether the ending is one of `DATA_ENDINGS`, perhaps with `.gz`."""
    return kind_of(path) not in (None, "zip", "folder")


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataFile:
    """A file of a training set.

    Attributes:
        rows: the rows as mappings; a missing key is a null.
        key: what else than the bytes decides the rows; None if nothing does.
        where: what error messages call the file.
        class_names: of columns whose labels are numbers with names.
        note: how the file is read, where that is not plain.
    """

    path: DataPath
    columns: list[str]
    rows: Callable[[ReadColumns], Iterator[Mapping[str, object]]]
    key: object
    where: str
    note: str = ""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


def open_data_file(path: DataPath, data: DataSettings) -> DataFile:
    """A file with one of `DATA_ENDINGS`, or a folder with one sub-folder a class.

    Raises:
        SourceError: the file is empty, cannot be read, or is broken where it begins. Its rows raise it at
            the first one that is broken.
    """
    kind = kind_of(path)
    if kind in _TABLES:
        return _parquet_data(path)
    if kind is None or kind == "zip":
        raise SourceError(f"{path}: unknown file type", hint="unpack zip files of such files")
    with closing(parse_file(path, str(path), kind, data, ReadOptions())) as parsed:
        layout, codec, columns, hint = parsed.layout, parsed.codec, parsed.columns, parsed.hint
    if columns == ["text"] and kind == "txt":
        raise SourceError(f"{path}: its lines have no labels", hint=_TXT_HINT)
    known = kind != "folder" and (codec != UTF8 or data.encoding is not None)
    again = replace(data, encoding=codec) if known else data  # the files of a folder may be UTF-8, too

    def rows(_: ReadColumns) -> Iterator[Mapping[str, object]]:
        options = ReadOptions(quoted=layout.quoted if layout else None)
        with closing(parse_file(path, str(path), kind, again, options)) as parsed:
            for row in parsed.rows:
                if row.problem is not None:  # a training set must be whole
                    broken = row.problem.startswith(f"not {encoding_name(codec)}")
                    what = f"{path}, line {row.line}: {row.problem}"
                    raise SourceError(what, hint=NAME_IT if broken else hint)
                yield row.values or {}

    where = f"{path} (its first line read as the header)" if layout and layout.header else str(path)
    key: list[object] | None = list(astuple(layout)) if layout else None
    if codec != UTF8:
        key = [*(key or []), codec]
    if kind == "xlsx":
        key = [columns, data.sheet]
    return DataFile(path, columns, rows, key, where, note=parsed.read_as(path.name))


def _parquet_data(path: DataPath) -> DataFile:
    with closing(TableFile(path)) as file:
        schema = file.schema

    def rows(columns: ReadColumns) -> Iterator[Mapping[str, object]]:
        with closing(TableFile(path)) as file:
            for batch in record_batches(file, path, 1000, columns=columns.names):
                yield from batch_values(batch, columns.names)

    return DataFile(path, schema.names, rows, None, str(path), class_names=class_names(schema))


# --- prediction -----------------------------------------------------------------------------------


@dataclass
class RowBatch:
    """Some rows in file order.

    Attributes:
        digest: SHA-256 of all rows of the file up to the last of these.
        consumed: bytes of the file that were read so far; 0 where that is not known.
        table: the same rows as Arrow has them, of parquet files.
    """

    rows: list[Row]
    digest: str
    consumed: int = 0
    table: pa.Table | None = None


@dataclass(frozen=True)
class QuoteRule:
    """Whether quotes are markup in a file with tabs, and which file that was found for."""

    bytes: int
    modified_ns: int
    quoted: bool


@dataclass
class RowFile:
    """An opened file of rows to be labelled.

    Attributes:
        kind: as `kind_of` has it; of what is in a zip file.
        columns: in order; of JSON those of the first rows.
        text, pair: the columns that are labelled; several columns that are joined have commas between.
        total: rows, where the file says so; else None.
        size: bytes, where that is known; else None.
        array: the rows are the values of one JSON array.
        plain_tabs: a tab-separated file in which a quote is only a character.
        quotes: what a later call can be given, so that it need not look at all lines again.
        first: rows of the file before these.
        codec: of the encoding, in Python.
        notes: how the file is read, as sentences.
    """

    kind: str
    name: str
    columns: list[str]
    text: str
    pair: str | None
    batches: Iterator[RowBatch]
    total: int | None = None
    size: int | None = None
    array: bool = False
    plain_tabs: bool = False
    quotes: QuoteRule | None = None
    schema: pa.Schema | None = None
    first: int = 0
    codec: str = UTF8
    notes: tuple[str, ...] = ()

    @property
    def needs_mark(self) -> bool:
        """Whether a csv file of these rows begins with a byte order mark, without which Excel misreads it."""
        return self.codec != UTF8 or self.kind == "xlsx"


def open_rows(
    source: Path | BinaryIO,
    kind: str,
    columns: DataSettings | None = None,
    *,
    header: bool = True,
    groups: range | None = None,
    quotes: QuoteRule | None = None,
    limits: ReadLimits | None = None,
) -> RowFile:
    """Open a file, or a stream of bytes, for reading once from its beginning.

    Args:
        source: a path (`.gz` is unpacked), or a binary stream such as `sys.stdin.buffer`.
        kind: one of KINDS.
        columns: names the text and pair columns; by default they have one of the usual names.
        header: False: a csv or tsv file begins with a row, its columns are column1, column2, ...;
            True: it has a header unless its first line looks like a row, as in training.
        groups: of a parquet file, the row groups to read; by default all.
        quotes: of an earlier `RowFile` of the same file; ignored when the file has changed.

    Raises:
        SourceError: empty, unreadable, or without a column of texts.
    """
    data, limits = columns or DataSettings(), limits or ReadLimits()
    if kind in _TABLES:
        if not isinstance(source, Path):
            raise UsageError(f"{kind} files are not read from standard input", hint="give the path")
        return _open_parquet_rows(source, data, groups, limits)
    name = str(source) if isinstance(source, Path) else "standard input"
    if kind == "zip" and isinstance(source, Path):
        inner = only_file(source, is_data_file)
        if (packed := kind_of(inner) or "") in _TABLES:
            return _open_parquet_rows(inner, data, None, limits)
        return _open_parsed_rows(inner, str(inner), packed, data, ReadOptions(header, None, limits))
    stamp = _stamp(source)
    known = quotes.quoted if quotes is not None and stamp == (quotes.bytes, quotes.modified_ns) else None
    opened = _open_parsed_rows(source, name, kind, data, ReadOptions(header, known, limits))
    if opened.quotes is None or stamp is None:
        return replace(opened, quotes=None)
    return replace(opened, quotes=QuoteRule(*stamp, opened.quotes.quoted))


def _open_parsed_rows(
    source: DataPath | BinaryIO, name: str, kind: str, data: DataSettings, options: ReadOptions
) -> RowFile:
    parsed = parse_file(source, name, kind, data, options)
    columns, layout = parsed.columns, parsed.layout
    if layout is not None and layout.header:
        _require_text_column(columns, data, name)
    if len(columns) == 1 and kind not in ("json", "jsonl"):
        if kind == "txt" and data.pair_column is not None:
            raise UsageError("--pair-column: a txt file has no columns")
        data = replace(data, text_column=columns[0])
    picked = pick_text_columns(columns, data, name)
    quoted = layout is None or layout.quoted
    tabs = layout is not None and layout.delimiter == "\t"
    read_as = parsed.read_as(Path(name).name)
    return RowFile(
        kind=kind, name=name, columns=columns, text=",".join(picked.text), pair=picked.pair,
        batches=_batches(parsed, picked, options.limits), size=parsed.lines.size if parsed.lines else None,
        array=parsed.array, plain_tabs=not quoted, quotes=QuoteRule(0, 0, quoted) if tabs else None,
        codec=parsed.codec, notes=(*([read_as] if read_as else []), picked.note(columns)),
    )  # fmt: skip


def _stamp(source: Path | BinaryIO) -> tuple[int, int] | None:
    """Size and time of change of a path; None for a stream."""
    if not isinstance(source, Path):
        return None
    with reading(source):
        status = source.stat()
    return status.st_size, status.st_mtime_ns


def _require_text_column(columns: Sequence[str], data: DataSettings, name: str) -> None:
    """Refuse a header that may be a row: none of its names is usual or named by `data`."""
    named = {name.lower() for name in (data.text_column, data.pair_column) if name}
    if not any(column.lower() in USUAL_NAMES | named for column in columns):
        raise SourceError(
            f"{name}: the first line names no column of texts: {', '.join(columns)[:200]}",
            hint="name it with --text-column, or say --no-header if that line is a row",
        )


def _batches(parsed: ParsedFile, picked: ReadColumns, limits: ReadLimits) -> Iterator[RowBatch]:
    digest, held, chars = hashlib.sha256(), list[Row](), 0
    for row in parsed.rows:
        _check_texts(row, picked)
        digest.update(repr((row.line, row.values, row.problem)).encode("utf-8", "surrogatepass"))
        held.append(row)
        chars += row_chars(row)
        if len(held) == limits.batch_rows or chars >= limits.batch_chars:
            yield RowBatch(held, digest.hexdigest(), parsed.consumed)
            held, chars = [], 0
    if held:
        yield RowBatch(held, digest.hexdigest(), parsed.consumed)


def _check_texts(row: Row, picked: ReadColumns) -> None:
    """Take the texts of a row out of its columns, or note why they cannot be labelled.

    A second text may be blank, as in training.
    """
    if row.values is None:
        return
    first, second = picked.text_of(row.values), picked.pair_of(row.values)
    try:
        check_text(first, f"column {','.join(picked.text)!r}")
        if picked.pair is not None and not (isinstance(second, str) and not second.strip()):
            check_text(second, f"column {picked.pair!r}")
    except SourceError as error:
        row.problem = error.what
    else:
        row.text, row.pair = cast(str, first), cast("str | None", second)


def _open_parquet_rows(
    path: DataPath, data: DataSettings, groups: range | None, limits: ReadLimits
) -> RowFile:
    import pyarrow as pa

    file = TableFile(path)
    schema = file.schema
    picked = pick_text_columns(schema.names, data, str(path))
    for column in picked.names:
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise SourceError(f"column {column!r} of {path} holds {kind}, not text", hint=_NAME_IT)
    groups = range(len(file.group_rows)) if groups is None else groups
    sizes = file.group_rows[: groups.stop]
    first, total = sum(sizes[: groups.start]), sum(sizes[groups.start :])

    def batches() -> Iterator[RowBatch]:
        digest, number = hashlib.sha256(), first
        wanted = picked.names
        for batch in record_batches(file, path, limits.batch_rows, groups=groups):
            digest.update(batch.serialize())
            rows = [
                Row(place, place, values)
                for place, values in enumerate(batch_values(batch, wanted), number + 1)
            ]
            for row in rows:
                _check_texts(row, picked)
            number += len(rows)
            yield RowBatch(rows, digest.hexdigest(), table=pa.Table.from_batches([batch]))
        file.close()

    return RowFile(
        kind="arrow" if file.is_arrow else "parquet", name=str(path), columns=schema.names,
        text=",".join(picked.text), pair=picked.pair, batches=batches(), total=total,
        schema=schema, first=first, notes=(picked.note(schema.names),),
    )  # fmt: skip
