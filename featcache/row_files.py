"""The rows of a file whose texts are to be labelled, a chunk at a time, with all their columns.

Unlike `readers`, which stop at the first broken row because a training set must be whole, what is here
goes on past it: a row that cannot be used carries what is wrong with it. Memory is bounded by `CHUNK_ROWS`,
`CHUNK_CHARS` and `LINE_BYTES`, whatever the file holds, and a stream that cannot be rewound will do.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from featcache.columns import USUAL_NAMES, pick_columns
from featcache.config import DataSettings
from featcache.errors import SourceError, UsageError
from featcache.json_array import elements
from featcache.readers import first_line, reading
from featcache.texts import check_text

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("csv", "tsv", "json", "jsonl", "parquet", "txt")
ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
           ".parquet": "parquet", ".txt": "txt"}  # fmt: skip
CHUNK_ROWS = 1024  # as a block of an extraction: the same texts are packed together
CHUNK_CHARS = 4 << 20  # a chunk ends early where its texts are this long together
LINE_BYTES = 16 << 20  # a longer line is no row of texts
BLOCK_BYTES = 1 << 20  # of a JSON array, read at once
RECORD_CHARS = 1 << 20  # a quoted field that spans lines ends before this, or its quote is a stray one
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_NO_LABEL = "(no label is needed)"


@dataclass(slots=True)
class Row:
    """One row as it was read.

    Attributes:
        number: counted from 1, in the order of the file.
        line: where it begins, counted from 1; of a parquet file the same as `number`.
        values: by column; None where not even the columns could be told.
        text, pair: what is to be labelled; empty where `problem` says why it cannot be.
        problem: None for a row that can be used.
    """

    number: int
    line: int
    values: dict[str, Any] | None
    text: str = ""
    pair: str | None = None
    problem: str | None = None


@dataclass
class Chunk:
    """Some rows in file order.

    Attributes:
        table: the same rows as Arrow has them, for parquet files.
        digest: SHA-256 over all rows of the file up to and with these.
        consumed: bytes of the file that were read so far; 0 where that is not known.
    """

    rows: list[Row]
    digest: str
    consumed: int = 0
    table: pa.Table | None = None


@dataclass
class RowFile:
    """An opened file of rows.

    Attributes:
        kind: one of KINDS.
        columns: in order; of JSON those of the first chunk.
        text, pair: the columns that are labelled.
        total: rows, where the file says so; else None.
        size: bytes, where that is known; else None.
        plain_tabs: a tab-separated file in which a quote is only a character.
        array: the rows are the values of one JSON array, not lines.
        first: rows of the file before these.
    """

    kind: str
    name: str
    columns: list[str]
    text: str
    pair: str | None
    chunks: Iterator[Chunk]
    total: int | None = None
    size: int | None = None
    plain_tabs: bool = False
    array: bool = False
    schema: pa.Schema | None = None
    first: int = 0


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
    lines = _Lines(source, name)
    with reading(Path(name)):
        array = kind in ("json", "jsonl") and lines.are_array()
        return _READERS[kind](
            _Values(lines) if array else lines,
            RowFile(kind, name, [], "", None, iter(()), size=lines.size, array=array),
            data,
            header,
        )


# --- lines --------------------------------------------------------------------------------------


class _Lines:
    """Numbered lines of a byte stream; what is no UTF-8 becomes surrogates, which no text may hold."""

    def __init__(self, source: Path | BinaryIO, name: str) -> None:
        self.name = name
        self.size: int | None = None
        self._raw = source if not isinstance(source, Path) else _opened(source)
        if isinstance(source, Path):
            self.size = source.stat().st_size
        packed = isinstance(source, Path) and source.name.lower().endswith(".gz")
        plain = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
        self._bytes: Any = plain if hasattr(plain, "peek") else io.BufferedReader(cast(Any, plain))
        self._back: deque[tuple[int, str]] = deque()
        self._number = 0

    @property
    def consumed(self) -> int:
        return self._raw.tell() if self.size is not None else 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        return self._back.popleft() if self._back else self._read()

    def are_array(self) -> bool:
        """Whether one JSON array begins where nothing has been read yet."""
        start: bytes = self._bytes.peek(1)
        return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")

    def blocks(self) -> Iterator[str]:
        """All of the stream in parts, decoded as lines are."""
        decoder, more = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape"), True
        while more:
            with reading(Path(self.name)):
                block = self._bytes.read(BLOCK_BYTES)
            more = bool(block)
            yield decoder.decode(block, final=not more)

    def _read(self) -> tuple[int, str]:
        with reading(Path(self.name)):
            line = self._bytes.readline(LINE_BYTES)
            if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                while (rest := self._bytes.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                line = b"\xff"  # no text: said to be too long where rows are checked
        if not line:
            raise StopIteration
        self._number += 1
        text = line.decode("utf-8", "surrogateescape")
        return self._number, text.removeprefix("\ufeff") if self._number == 1 else text

    def sample(self) -> list[str]:
        """The lines of about the first chunk, which stay to be read."""
        held, chars = [], 0
        for number, text in itertools.islice(self, CHUNK_ROWS):
            held.append((number, text))
            chars += len(text)
            if chars >= CHUNK_CHARS:
                break
        self.put_back(held)
        return [text for _, text in held]

    def put_back(self, lines: Sequence[tuple[int, str]]) -> None:
        self._back.extendleft(reversed(lines))


class _Values(_Lines):
    """The values of one JSON array, each with the line it begins in, in the place of lines.

    Args:
        lines: nothing of them read.
    """

    def __init__(self, lines: _Lines) -> None:
        self.name, self.size, self._raw, self._back = lines.name, lines.size, lines._raw, deque()
        self._values = elements(lines.blocks(), lines.name, LINE_BYTES)

    def _read(self) -> tuple[int, str]:
        return next(self._values)


def _opened(path: Path) -> BinaryIO:
    with reading(path):
        return path.open("rb")


def _chunked(lines: _Lines, rows: Iterator[Row]) -> Iterator[Chunk]:
    digest, held, chars = hashlib.sha256(), [], 0
    for row in rows:
        digest.update(repr((row.line, row.values, row.problem)).encode("utf-8", "surrogatepass"))
        held.append(row)
        chars += sum(len(value) for value in (row.values or {}).values() if isinstance(value, str))
        if len(held) == CHUNK_ROWS or chars >= CHUNK_CHARS:
            yield Chunk(held, digest.hexdigest(), lines.consumed)
            held, chars = [], 0
    if held:
        yield Chunk(held, digest.hexdigest(), lines.consumed)


def _row(number: int, line: int, values: dict[str, Any], text: str, pair: str | None) -> Row:
    """A row whose texts are fit to be labelled, or that says why they are not."""
    try:
        check_text(values.get(text), f"column {text!r}")
        if pair is not None:
            check_text(values.get(pair), f"column {pair!r}")
    except SourceError as error:
        return Row(number, line, values, problem=error.what)
    return Row(number, line, values, values[text], None if pair is None else values[pair])


def _unreadable(text: str) -> str | None:
    """What is wrong with a line that is no UTF-8; None where nothing is."""
    if text == "\udcff":
        return f"longer than {LINE_BYTES >> 20} MiB"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not UTF-8 at character {error.start + 1}"
    return None


# --- txt and json -------------------------------------------------------------------------


def _txt(lines: _Lines, found: RowFile, data: DataSettings, header: bool) -> RowFile:
    def rows() -> Iterator[Row]:
        for number, raw in lines:
            text = raw.rstrip("\r\n")
            wrong = _unreadable(text)
            made = _row(number, number, {"text": text}, "text", None)
            yield Row(number, number, None, problem=wrong) if wrong else made

    if data.pair_column is not None:
        raise UsageError("--pair-column: a txt file has no columns")
    return replace(found, columns=["text"], text="text", chunks=_chunked(lines, rows()))


def _jsonl(lines: _Lines, found: RowFile, data: DataSettings, header: bool) -> RowFile:
    sample = [text for text in lines.sample() if text.strip()]
    if not sample:
        raise SourceError(f"{found.name} is empty")
    parsed = (_parsed(text)[0] or {} for text in sample)
    columns = list(dict.fromkeys(itertools.chain.from_iterable(parsed)))
    if not columns:
        raise SourceError(f"{found.name} holds no JSON objects", hint='one a line, e.g. {"text": "..."}')
    text, pair = _texts(columns, data, found.name)

    def rows() -> Iterator[Row]:
        numbers = itertools.count(1)
        for line, raw in lines:
            if raw.strip():
                values, wrong = _parsed(raw)
                number = next(numbers)
                made = Row(number, line, None, problem=wrong)
                yield made if values is None else _row(number, line, values, text, pair)

    return replace(found, columns=columns, text=text, pair=pair, chunks=_chunked(lines, rows()))


def _parsed(raw: str) -> tuple[dict[str, Any] | None, str | None]:
    """The object of one line, or what is wrong with it."""
    if wrong := _unreadable(raw):
        return None, wrong
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON: {first_line(error)}"
    return (value, None) if isinstance(value, dict) else (None, f"not a JSON object but {raw.strip()[:40]}")


# --- csv and tsv --------------------------------------------------------------------------------


def _delimited(lines: _Lines, found: RowFile, data: DataSettings, header: bool) -> RowFile:
    sample = [text for text in lines.sample() if text.strip()]
    if not sample:
        raise SourceError(f"{found.name} is empty")
    if wrong := _unreadable(sample[0]):
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
    text, pair = _texts(columns, data, found.name)

    def rows() -> Iterator[Row]:
        for number, (line, fields, wrong) in enumerate(_whole(records, lines, len(columns)), 1):
            if fields is None:
                yield Row(number, line, None, problem=wrong)
            else:
                yield _row(number, line, dict(zip(columns, fields, strict=True)), text, pair)

    chunks = _chunked(lines, rows())
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


def _plain_records(lines: _Lines) -> Iterator[_Record]:
    for number, raw in lines:
        if text := raw.rstrip("\r\n"):
            yield number, text.split("\t"), None, []


def _quoted_records(lines: _Lines, mark: str) -> Iterator[_Record]:
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
    records: Iterator[_Record], lines: _Lines, width: int
) -> Iterator[tuple[int, list[str] | None, str | None]]:
    """Records with as many fields as the first line; of any other only its first line is given up."""
    for number, fields, wrong, more in records:
        if fields is not None:
            wrong = next((said for said in map(_unreadable, fields) if said), None)
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
    text, pair = _texts(schema.names, data, name)
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
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, row_groups=list(groups)):
            digest.update(batch.serialize())
            try:
                values = batch.select(wanted).to_pylist()
            except UnicodeDecodeError:
                values = [_decoded(batch, row, wanted) for row in range(len(batch))]
            places = [next(number) for _ in values]
            rows = [_row(n, n, one, text, pair) for n, one in zip(places, values, strict=True)]
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


def _texts(columns: Sequence[str], data: DataSettings, name: str) -> tuple[str, str | None]:
    """The columns of text and pair by the rules of `columns`, which a training set follows too."""
    picked = pick_columns([*columns, _NO_LABEL], replace(data, label_column=_NO_LABEL), name)
    return picked.text, picked.pair


_CSV_ERRORS = {
    "unexpected end of data": "a quote that is never closed",
    "',' expected after '\"'": 'a quote in a quoted text that is not written twice: ""',
}
_AS_UTF8 = "save it as UTF-8, e.g.: iconv -f GB18030 -t UTF-8 OLD > NEW"
_NAME_IT = "name the column with the text: --text-column"
_READERS = {"txt": _txt, "json": _jsonl, "jsonl": _jsonl, "csv": _delimited, "tsv": _delimited}
