"""Opens files of rows, for training, where the first broken row is an error, and for prediction.

Both use the parsers of this package, so that a file has the same rows for both. Prediction goes on after a
broken row; memory is bounded by `ReadLimits`, and a stream that cannot be rewound is read as well.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, cast

from featcache.data.columns import USUAL_NAMES, ReadColumns, pick_text_columns
from featcache.data.formats.delimited import DelimitedLayout, delimited_rows, read_layout
from featcache.data.formats.encodings import NAME_IT, UTF8, encoding_name
from featcache.data.formats.json_rows import json_rows
from featcache.data.formats.lines import Lines, ReadLimits, Row, reading
from featcache.data.formats.parquet import batch_values, class_names, open_parquet, record_batches
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings
from featcache.system.text import check_text

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
           ".parquet": "parquet", ".txt": "txt"}  # fmt: skip
KINDS = tuple(dict.fromkeys(ENDINGS.values()))
TRAINING_ENDINGS = tuple(ending for ending in ENDINGS if ending != ".txt")
_NAME_IT = "name the column with the text: --text-column"
_CSV_HINT = (
    "the file is cut short there, or a text holds the delimiter or a quote;"
    ' a double quote inside a quoted text is written twice: ""'
)
_JSON_HINT = 'one object a row, as JSON lines or in one array, e.g. {"text": "...", "label": 1}'


def kind_of(path: Path) -> str | None:
    """One of KINDS by the ending, `.gz` aside; None for another ending."""
    name = path.name.lower()
    kind = ENDINGS.get(Path(name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def is_data_file(path: Path) -> bool:
    """Whether the ending is one of `TRAINING_ENDINGS`."""
    return kind_of(path) not in (None, "txt")


# --- both ways -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ParsedFile:
    """The columns of a file and its rows, to be read once; `layout` of csv and tsv files."""

    columns: list[str]
    rows: Iterator[Row]
    layout: DelimitedLayout | None = None
    array: bool = False


def _parse(
    lines: Lines, kind: str, data: DataSettings, *, header: bool = True, quoted: bool | None = None
) -> _ParsedFile:
    """The rows of a file of any kind but parquet; for the arguments see `read_layout`."""
    if kind == "txt":
        return _ParsedFile(["text"], _txt_rows(lines))
    if kind in ("csv", "tsv"):
        layout = read_layout(lines, data, tabs=kind == "tsv", header=header, quoted=quoted)
        return _ParsedFile(layout.columns, delimited_rows(lines, layout), layout)
    array = lines.first_mark() == "["
    rows = json_rows(lines, array=array)
    sample, chars = list[Row](), 0
    while len(sample) < lines.limits.sample_rows and chars <= lines.limits.row_chars:
        if (row := next(rows, None)) is None:
            break
        sample.append(row)
        chars += _chars(row)
    if not sample:
        raise SourceError(f"{lines.name} is empty")
    columns = list(dict.fromkeys(itertools.chain.from_iterable(row.values or () for row in sample)))
    if not columns:
        first = f"line {sample[0].line}: {sample[0].problem or 'an empty object'}"
        raise SourceError(f"{lines.name} has no JSON objects with columns; {first}", hint=_JSON_HINT)
    return _ParsedFile(columns, itertools.chain(sample, rows), array=array)


def _txt_rows(lines: Lines) -> Iterator[Row]:
    for number, raw in lines:
        text = raw.rstrip("\r\n")
        problem = lines.wrong_encoding(text)
        yield Row(number, number, None if problem else {"text": text}, problem=problem)


def _read_as(path: Path, codec: str) -> str:
    """What the user is told of an encoding that is not UTF-8."""
    return "" if codec == UTF8 else f"{path.name} is read as {encoding_name(codec)}"


def _chars(row: Row) -> int:
    return sum(len(value) for value in (row.values or {}).values() if isinstance(value, str))


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

    path: Path
    columns: list[str]
    rows: Callable[[ReadColumns], Iterator[Mapping[str, object]]]
    key: object
    where: str
    note: str = ""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


def open_data_file(path: Path, data: DataSettings) -> DataFile:
    """A file with one of `TRAINING_ENDINGS`.

    Raises:
        SourceError: the file is empty, cannot be read, or is broken where it begins. Its rows raise it at
            the first one that is broken.
    """
    kind = kind_of(path)
    if kind == "parquet":
        return _parquet_data(path)
    if kind is None:
        raise SourceError(f"{path}: unknown file type")
    with closing(Lines(path, str(path), encoding=data.encoding)) as lines:
        parsed, codec = _parse(lines, kind, data), lines.codec
    layout = parsed.layout

    def rows(_: ReadColumns) -> Iterator[Mapping[str, object]]:
        with closing(Lines(path, str(path), encoding=codec)) as lines:
            for row in _parse(lines, kind, data, quoted=layout.quoted if layout else None).rows:
                if row.problem is not None:  # a training set must be whole
                    hint = _CSV_HINT if layout else _JSON_HINT
                    hint = NAME_IT if row.problem.startswith(f"not {encoding_name(codec)}") else hint
                    raise SourceError(f"{path}, line {row.line}: {row.problem}", hint=hint)
                yield row.values or {}

    where = f"{path} (its first line read as the header)" if layout and layout.header else str(path)
    key: list[object] | None = list(astuple(layout)) if layout else None
    if codec != UTF8:
        key = [*(key or []), codec]
    return DataFile(path, parsed.columns, rows, key, where, note=_read_as(path, codec))


def _parquet_data(path: Path) -> DataFile:
    with open_parquet(path) as file:
        schema = file.schema_arrow

    def rows(columns: ReadColumns) -> Iterator[Mapping[str, object]]:
        with open_parquet(path) as file:
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
        kind: one of KINDS.
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
        return self.codec != UTF8


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
    if kind == "parquet":
        if not isinstance(source, Path):
            raise UsageError("a parquet file cannot be read from standard input", hint="give its path")
        return _open_parquet_rows(source, data, groups, limits)
    name = str(source) if isinstance(source, Path) else "standard input"
    if kind == "txt" and data.pair_column is not None:
        raise UsageError("--pair-column: a txt file has no columns")
    stamp = _stamp(source)
    known = quotes.quoted if quotes is not None and stamp == (quotes.bytes, quotes.modified_ns) else None
    lines = Lines(source, name, limits, data.encoding)
    parsed = _parse(lines, kind, data, header=header, quoted=known)
    layout = parsed.layout
    if layout is not None and layout.header:
        _require_text_column(layout.columns, data, name)
    if len(parsed.columns) == 1 and kind not in ("json", "jsonl"):
        data = replace(data, text_column=parsed.columns[0])
    picked = pick_text_columns(parsed.columns, data, name)
    tabs = layout is not None and layout.delimiter == "\t"
    quoted = layout is None or layout.quoted
    return RowFile(
        kind=kind, name=name, columns=parsed.columns, text=",".join(picked.text), pair=picked.pair,
        size=lines.size, batches=_batches(parsed.rows, lines, picked), codec=lines.codec,
        notes=_notes(name, lines.codec, picked, parsed.columns), array=parsed.array, plain_tabs=not quoted,
        quotes=QuoteRule(*stamp, quoted) if tabs and stamp else None,
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


def _notes(name: str, codec: str, picked: ReadColumns, columns: Sequence[str]) -> tuple[str, ...]:
    read_as = _read_as(Path(name), codec)
    return (*([read_as] if read_as else []), picked.note(columns))


def _batches(rows: Iterator[Row], lines: Lines, picked: ReadColumns) -> Iterator[RowBatch]:
    digest, held, chars = hashlib.sha256(), list[Row](), 0
    for row in rows:
        _check_texts(row, picked)
        digest.update(repr((row.line, row.values, row.problem)).encode("utf-8", "surrogatepass"))
        held.append(row)
        chars += _chars(row)
        if len(held) == lines.limits.batch_rows or chars >= lines.limits.batch_chars:
            yield RowBatch(held, digest.hexdigest(), lines.consumed)
            held, chars = [], 0
    if held:
        yield RowBatch(held, digest.hexdigest(), lines.consumed)


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


def _open_parquet_rows(path: Path, data: DataSettings, groups: range | None, limits: ReadLimits) -> RowFile:
    import pyarrow as pa

    file = open_parquet(path)
    schema = file.schema_arrow
    picked = pick_text_columns(schema.names, data, str(path))
    for column in picked.names:
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise SourceError(f"column {column!r} of {path} holds {kind}, not text", hint=_NAME_IT)
    groups = range(file.num_row_groups) if groups is None else groups
    sizes = [file.metadata.row_group(group).num_rows for group in range(groups.stop)]
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

    return RowFile(
        kind="parquet", name=str(path), columns=schema.names, text=",".join(picked.text), pair=picked.pair,
        batches=batches(), total=total, schema=schema, first=first, notes=(picked.note(schema.names),),
    )  # fmt: skip
