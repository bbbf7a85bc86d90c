"""Lines of a file of rows, and rows as they are handed on: numbered, checked, in chunks.

What is here goes on past what is broken: a line that is no UTF-8 or too long becomes a row that says so.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from featcache.data.columns import pick_columns
from featcache.data.formats.json_array import elements
from featcache.data.formats.readers import reading
from featcache.errors import SourceError
from featcache.settings import DataSettings
from featcache.system.text import check_text

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 1024  # as a block of an extraction: the same texts are packed together
CHUNK_CHARS = 4 << 20  # a chunk ends early where its texts are this long together
LINE_BYTES = 16 << 20  # a longer line is no row of texts
BLOCK_BYTES = 1 << 20  # of a JSON array, read at once
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


class Lines:
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


class Values(Lines):
    """The values of one JSON array, each with the line it begins in, in the place of lines.

    Args:
        lines: nothing of them read.
    """

    def __init__(self, lines: Lines) -> None:
        self.name, self.size, self._raw, self._back = lines.name, lines.size, lines._raw, deque()
        self._values = elements(lines.blocks(), lines.name, LINE_BYTES)

    def _read(self) -> tuple[int, str]:
        return next(self._values)


def _opened(path: Path) -> BinaryIO:
    with reading(path):
        return path.open("rb")


def chunked(lines: Lines, rows: Iterator[Row]) -> Iterator[Chunk]:
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


def checked_row(number: int, line: int, values: dict[str, Any], text: str, pair: str | None) -> Row:
    """A row whose texts are fit to be labelled, or that says why they are not."""
    try:
        check_text(values.get(text), f"column {text!r}")
        if pair is not None:
            check_text(values.get(pair), f"column {pair!r}")
    except SourceError as error:
        return Row(number, line, values, problem=error.what)
    return Row(number, line, values, values[text], None if pair is None else values[pair])


def unreadable(text: str) -> str | None:
    """What is wrong with a line that is no UTF-8; None where nothing is."""
    if text == "\udcff":
        return f"longer than {LINE_BYTES >> 20} MiB"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not UTF-8 at character {error.start + 1}"
    return None


def text_columns(columns: Sequence[str], data: DataSettings, name: str) -> tuple[str, str | None]:
    """The columns of text and pair by the rules of `columns`, which a training set follows too."""
    picked = pick_columns([*columns, _NO_LABEL], replace(data, label_column=_NO_LABEL), name)
    return picked.text, picked.pair
