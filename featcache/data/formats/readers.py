"""The rows of one csv, tsv, json, jsonl or parquet file, one after the other.

The readers here are stricter than the usual ones on purpose: a text called "NA" stays a text, a
stray quote swallows no lines, and a ragged line is an error that names the line instead of a
shifted column.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple, cast

from featcache.data.columns import USUAL_NAMES, Columns
from featcache.errors import SourceError
from featcache.settings import DataSettings

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_SAMPLE_ROWS = 1000
_FIELD_LIMIT = 64 << 20  # a quote that never closes must not read the whole file into one field
INTEGER = re.compile(r"[+-]?\d{1,18}")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


class Reader(NamedTuple):
    """How one file is read: its columns, and its rows as mappings (a missing key is a null)."""

    path: Path
    columns: list[str]
    rows: Callable[[Columns], Iterator[Mapping[str, object]]]
    key: object  # what else than the bytes decides the rows
    where: str  # what error messages call it
    class_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def open_reader(path: Path, data: DataSettings) -> Reader:
    """The reader of a file with one of the endings in `FORMATS`.

    Raises:
        SourceError: the file is empty or broken where it begins, or cannot be read.
    """
    with reading(path):
        kind = file_format(path)
        if kind == "parquet":
            return _parquet_reader(path)
        if kind == "json":
            return _json_reader(path)
        return _delimited_reader(path, data, tabs=kind == "tsv")


def file_format(path: Path) -> str | None:
    """csv, tsv, json or parquet; None for another ending."""
    name = path.name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    return None if ending == ".parquet" and name.endswith(".gz") else FORMATS.get(ending)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while `path` is read, as a `SourceError` that names it."""
    try:
        yield
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"cannot read {path}: cut short or not gzip ({error})") from None
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None


def _open(path: Path, newline: str = "") -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline=newline))
    return path.open(encoding="utf-8-sig", newline=newline)


def _not_utf8(path: Path) -> SourceError:
    """The error for a file that is not UTF-8, with the offset of the first wrong byte."""
    hint = "save it as UTF-8, e.g.: iconv -f GB18030 -t UTF-8 OLD > NEW"
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
        while True:
            chunk = handle.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset = done - pending + error.start
                return SourceError(f"{path} is not UTF-8: byte {offset} cannot be read", hint=hint)
            if not chunk:
                return SourceError(f"{path} is not UTF-8", hint=hint)
            done += len(chunk)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


# --- csv and tsv --------------------------------------------------------------------------------


def _delimited_reader(path: Path, data: DataSettings, *, tabs: bool) -> Reader:
    with _open(path) as handle:
        first = next((line for line in handle if line.strip()), None)
    if first is None:
        raise SourceError(f"{path} is empty")
    candidates = "\t" if tabs else ",\t;"
    delimiter = next((mark for mark in candidates if mark in first), candidates[0])
    quoted = delimiter != "\t" or not _tabs_are_plain(path)
    records = partial(_records, path, delimiter, quoted)
    sample = [fields for _, fields in itertools.islice(records(), _SAMPLE_ROWS)]
    header = _has_header(sample, data)
    columns = _header(sample[0], path) if header else _made_up_header(sample)

    def rows(_: Columns) -> Iterator[dict[str, object]]:
        for line, fields in itertools.islice(records(), int(header), None):
            if len(fields) != len(columns):
                raise SourceError(
                    f"{path}, line {line}: {len(fields)} fields; the first line has {len(columns)}",
                    hint="the file is cut short there, or a text holds the delimiter unquoted",
                )
            yield dict(zip(columns, fields, strict=True))

    where = f"{path} (its first line read as the header)" if header else str(path)
    return Reader(path, columns, rows, [delimiter, quoted, header, columns], where)


def _records(path: Path, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line that is not blank."""
    with reading(path), _open(path, "" if quoted else "\n") as handle:
        if not quoted:
            for number, line in enumerate(handle, 1):
                if line := line.rstrip("\r\n"):
                    yield number, line.split(delimiter)
            return
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                fields = _next_record(reader)
            except csv.Error as error:
                raise SourceError(
                    f"{path}, line {start}: {error}",
                    hint='a double quote inside a quoted text is written twice: ""',
                ) from None
            if fields is None:
                return
            if fields:
                yield start, fields


def _next_record(reader: Iterator[list[str]]) -> list[str] | None:
    # The limit is the process's, so it is put back before anyone else's code runs.
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _tabs_are_plain(path: Path) -> bool:
    """True if a quote in this tab-separated file is just a character.

    Every line having as many tabs says that no field spans lines. Quotes are then markup only if
    each field that has one is well quoted, and some field shows that a csv writer was at work: a
    doubled quote inside, or a column that is quoted on every line.
    """
    widths: set[int] = set()
    doubled, always_quoted = False, None
    stray = False
    with _open(path, "\n") as handle:
        for line in handle:
            if not (line := line.rstrip("\r\n")):
                continue
            widths.add(line.count("\t"))
            quoted = set()
            if '"' in line:
                for place, text in enumerate(line.split("\t")):
                    if '"' in text and _QUOTED.fullmatch(text):
                        quoted.add(place)
                        doubled = doubled or '"' in text[1:-1]
                    elif '"' in text:
                        stray = True
            always_quoted = quoted if always_quoted is None else always_quoted & quoted
    return len(widths) == 1 and (stray or not (doubled or always_quoted))


def _has_header(sample: Sequence[Sequence[str]], data: DataSettings) -> bool:
    first = [name.strip().lower() for name in sample[0]]
    named = (data.text_column, data.pair_column, data.label_column)
    if any(name is not None and name.lower() in first for name in named):
        return True
    # One usual name may be a short text or a label such as "y"; two are a header.
    return sum(name in USUAL_NAMES for name in first) > 1 or _label_place(sample) is None


def _label_place(sample: Sequence[Sequence[str]]) -> int | None:
    """The place (-1 or 0) whose value in the first line is a label like those below it."""
    best: tuple[int, int] | None = None
    for place in (-1, 0) if len(sample[0]) > 1 else ():
        first, *others = (fields[place].strip() for fields in sample)
        numbers = all(INTEGER.fullmatch(value) for value in (first, *others))
        distinct = len({first, *others})
        if (numbers or first in others) and (best is None or distinct < best[0]):
            best = distinct, place
    return None if best is None else best[1]


def _header(fields: Sequence[str], path: Path) -> list[str]:
    columns = [name.strip() or f"column{place}" for place, name in enumerate(fields, 1)]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise SourceError(f"{path}: the first line names a column twice: {', '.join(twice)}")
    return columns


def _made_up_header(sample: Sequence[Sequence[str]]) -> list[str]:
    """text and label for a file of two columns without a header; else column1, ... and label."""
    width = len(sample[0])
    columns = ["text"] * 2 if width == 2 else [f"column{place}" for place in range(1, width + 1)]
    columns[cast(int, _label_place(sample))] = "label"
    return columns


# --- json and parquet ---------------------------------------------------------------------------


def _json_reader(path: Path) -> Reader:
    sample = list(itertools.islice(_json_rows(path), _SAMPLE_ROWS))
    if not sample:
        raise SourceError(f"{path} is empty")
    columns = list(dict.fromkeys(itertools.chain.from_iterable(sample)))
    return Reader(path, columns, lambda _: _json_rows(path), None, str(path))


def _json_rows(path: Path) -> Iterator[dict[str, object]]:
    """The objects of a file of JSON lines, or of one array (which is read at once)."""
    with reading(path), _open(path, "\n") as handle:
        lead = next((line for line in handle if line.strip()), "").lstrip()
        handle.seek(0)
        if lead.startswith("["):
            values: Iterable[tuple[str, object]] = (
                (f"item {number}", value) for number, value in enumerate(_parse_json(handle.read(), path), 1)
            )
        else:
            values = (
                (f"line {number}", _parse_json(line, path, f", line {number}"))
                for number, line in enumerate(handle, 1)
                if line.strip()
            )
        for where, value in values:
            if not isinstance(value, dict):
                raise SourceError(
                    f"{path}, {where}: not a JSON object",
                    hint='one object a row, e.g. {"text": "...", "label": 1}',
                )
            yield value


def _parse_json(text: str, path: Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path}{where}: not valid JSON: {first_line(error)}",
            hint="the file is cut short, or it is neither JSON lines nor one JSON array",
        ) from None


def _parquet_reader(path: Path) -> Reader:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except pa.ArrowException as error:
        raise SourceError(f"cannot read {path}: {first_line(error)}") from None

    def rows(columns: Columns) -> Iterator[dict[str, object]]:
        wanted = [column for column in columns if column is not None]
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1000, columns=wanted):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"cannot read {path}: {first_line(error)}") from None

    return Reader(path, list(schema.names), rows, None, str(path), _class_names(schema.metadata or {}))


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Names of the columns of ClassLabel, or of lists of it, which `datasets` notes in the metadata."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        kinds = {
            name: kind[0] if isinstance(kind, list) else kind.get("feature", kind)
            for name, kind in features.items()
        }
        return {
            name: tuple(kind["names"])
            for name, kind in kinds.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return {}  # written by someone else
