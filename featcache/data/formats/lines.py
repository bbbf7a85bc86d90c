"""Numbered lines of a file, and the rows that the parsers of all formats make.

A line that is not in the encoding of its file or is too long becomes a row with a problem; reading goes on
after it.
"""

from __future__ import annotations

import gzip
import io
import shutil
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from featcache.data.formats.encodings import (
    BLOCK,
    BROKEN_ERRORS,
    UTF8,
    encoding_name,
    find_encoding,
    may_be_utf8,
    named_codec,
)
from featcache.errors import SourceError

_TOO_LONG = "\ud800"  # stands for a line that is too long: decoding never makes this character
_MOST_RATIO = 250  # bytes of texts for each packed one; real texts have less than 20
_SMALL = 1 << 30  # bytes that may have any ratio
DataPath = Path | zipfile.Path  # a file or folder, on this disk or in a zip file
PLACES = (Path, zipfile.Path)
_READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class ReadLimits:
    """How much of a file is held in memory at once.

    Attributes:
        sample_rows: rows at the beginning that decide about header and columns.
        batch_rows: rows of a batch; the same number that an extraction encodes together.
        batch_chars: a batch ends early when its texts have this many characters.
        row_chars: longest line or JSON value; a longer one is a broken row.
        record_chars: longest quoted record that spans lines; in a longer one the quote is taken for one
            that is never closed. Its lines are held, and read again then.
        block_chars: characters of a JSON array that are read at once.
    """

    sample_rows: int = 1000
    batch_rows: int = 1024
    batch_chars: int = 4 << 20
    row_chars: int = 64 << 20
    record_chars: int = 16 << 20
    block_chars: int = 1 << 20


@dataclass(slots=True)
class Row:
    """One row of a file.

    Attributes:
        number: counted from 1, in file order.
        line: where the row begins, counted from 1; in a parquet file the same as `number`.
        values: by column; None where the row could not be parsed.
        text, pair: the texts to label; empty if there is a problem.
        problem: why the row cannot be used; None where it can.
    """

    number: int
    line: int
    values: dict[str, Any] | None
    text: str = ""
    pair: str | None = None
    problem: str | None = None


class Lines:
    """Numbered lines of a file or a stream of bytes; what the encoding does not have is a lone surrogate.

    A stream is read as UTF-8 unless its beginning is something else; then it is copied to be looked at.

    Args:
        source: a path (`.gz` is unpacked) or a binary stream, which is closed with this object.
        name: of the file, for messages.
        encoding: by default what a look at all bytes of the file says.

    Attributes:
        size: in bytes, of a path; else None.
        codec: of the encoding, in Python.
        universal: a carriage return alone ends a line too, as in the csv module; by default not.

    Raises:
        SourceError: the file cannot be opened; also while lines are read.
        SourceError: the encoding is not certain.
        UsageError: there is no encoding of this name.
    """

    def __init__(
        self,
        source: DataPath | BinaryIO,
        name: str,
        limits: ReadLimits | None = None,
        encoding: str | None = None,
    ) -> None:
        self.name, self.limits = name, limits or ReadLimits()
        self.universal = False
        self._source: DataPath | IO[bytes] = source
        self._is_copy = False
        self.codec = self._copied_as = named_codec(encoding) if encoding else self._found_codec()
        self._open()

    def _found_codec(self) -> str:
        if not isinstance(self._source, PLACES):
            peeked = io.BufferedReader(self._source)  # type: ignore[type-var]
            self._source = peeked
            with reading(self.name):
                if may_be_utf8(peeked.peek()):
                    return UTF8
            self._source, self._is_copy = tempfile.TemporaryFile(), True  # noqa: SIM115 - as long as the lines
            with reading(self.name):
                shutil.copyfileobj(peeked, self._source)
        codec = find_encoding(self._bytes, self.name)
        if not isinstance(self._source, PLACES):
            self._source.seek(0)
        return codec

    def _bytes(self) -> Iterator[bytes]:
        """The unpacked bytes of a path or a copy, from the first one."""
        with reading(self.name), ExitStack() as stack:
            if isinstance(self._source, PLACES):
                raw: IO[bytes] = stack.enter_context(self._source.open("rb"))
            else:
                raw = self._source
                raw.seek(0)
            unpacked = self._unpacked(raw)
            while block := unpacked.read(BLOCK):
                yield block

    def _unpacked(self, raw: IO[bytes]) -> IO[bytes]:
        packed = isinstance(self._source, PLACES) and self._source.name.lower().endswith(".gz")
        return cast("IO[bytes]", _Gzip(raw, self.name)) if packed else raw

    def _open(self) -> None:
        with reading(self.name):
            source = self._source
            self._raw = source.open("rb") if isinstance(source, PLACES) else source
            self.size = source.stat().st_size if isinstance(source, Path) else None
        # `newline=""` keeps line ends as they are and ends a line at any of them.
        self._text = io.TextIOWrapper(
            cast(Any, self._unpacked(self._raw)),
            self._copied_as,
            "surrogateescape" if self._copied_as.startswith("utf-8") else BROKEN_ERRORS,
            newline="",
        )
        self._held: deque[tuple[int, str]] = deque()
        self._seen: list[tuple[int, str]] | None = None
        self._lead = ""
        self._number = 0

    def close(self) -> None:
        self._text.close()
        self._raw.close()

    @property
    def consumed(self) -> int:
        """Bytes of a path read so far; 0 for a stream."""
        return self._raw.tell() if self.size is not None else 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        line = self._held.popleft() if self._held else self._read()
        if self._seen is not None:
            self._seen.append(line)
        return line

    @contextmanager
    def preview(self) -> Iterator[None]:
        """Lines that are read inside are read again afterwards."""
        self._seen = []
        try:
            yield
        finally:
            seen, self._seen = self._seen, None
            self.put_back(seen)

    def put_back(self, lines: Sequence[tuple[int, str]]) -> None:
        """Make the lines that were read last the next ones."""
        self._held.extendleft(reversed(lines))
        if self._seen:
            del self._seen[len(self._seen) - len(lines) :]

    def rewind(self, *, universal: bool) -> None:
        """Begin again at the first line; a stream is first copied to a temporary file."""
        if isinstance(self._source, PLACES):
            self.close()
        elif self._is_copy:
            self._text.detach()  # closing it would close the copy
            self._source.seek(0)
        else:
            copy = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the lines
            for _, text in self:
                copy.write(text.replace(_TOO_LONG, "\udcff").encode("utf-8", "surrogateescape"))
            copy.seek(0)
            self._source, self._is_copy, self._copied_as = copy, True, "utf-8"
        self.universal = universal
        self._open()

    def first_mark(self) -> str:
        """The next character that is not white space, which stays to be read; empty at the end."""
        while (mark := self._take(self._text.read, 1)).isspace():
            self._number += mark == "\n"
        self._lead = mark
        return mark

    def blocks(self) -> Iterator[str]:
        """The rest of the file in parts that do not end with lines."""
        yield self._lead
        while block := self._take(self._text.read, self.limits.block_chars):
            yield block

    @property
    def next_number(self) -> int:
        """Number of the line that is read next from the file."""
        return self._number + 1

    def _read(self) -> tuple[int, str]:
        parts = [self._piece()]
        chars = len(parts[0])
        while parts[-1].endswith("\r") and not self.universal:
            parts.append(self._piece())
            chars += len(parts[-1])
            if chars > self.limits.row_chars:
                parts = [_TOO_LONG, parts[-1]]
        if not parts[0]:
            raise StopIteration
        self._number += 1
        return self._number, "".join(parts)

    def _piece(self) -> str:
        """Up to and with the next line end of any kind."""
        most = self.limits.row_chars
        text = self._lead + self._take(self._text.readline, most)
        self._lead = ""
        if len(text) < most or text.endswith(("\n", "\r")):
            return text
        while (rest := self._take(self._text.readline, most)) and not rest.endswith(("\n", "\r")):
            pass
        return _TOO_LONG + "\n"

    def _take(self, read: Callable[[int], str], size: int) -> str:
        try:
            return read(size)
        except _READ_ERRORS as error:
            raise read_error(self.name, error) from None

    def wrong_encoding(self, text: str) -> str | None:
        """Why a line or field cannot be used: it is too long or not in the encoding; None if it can."""
        if text.isascii():
            return None
        if _TOO_LONG in text:
            return f"longer than {self.limits.row_chars >> 20} MiB"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"not {encoding_name(self.codec)} at character {error.start + 1}"
        return None


class _Gzip(gzip.GzipFile):
    """Refuses a file that becomes far longer than texts do."""

    def __init__(self, packed: IO[bytes], name: str) -> None:
        super().__init__(fileobj=packed)
        self._packed, self._shown = packed, name

    def read(self, size: int | None = -1) -> bytes:
        require_ratio(self.tell(), self._packed.tell(), self._shown)
        return super().read(size)

    def read1(self, size: int = -1) -> bytes:
        require_ratio(self.tell(), self._packed.tell(), self._shown)
        return super().read1(size)


def require_ratio(unpacked: int, packed: int, name: str) -> None:
    """
    Raises:
        SourceError: `packed` bytes have become more than texts do.
    """
    if unpacked > _SMALL and unpacked > _MOST_RATIO * max(packed, 1):
        raise SourceError(
            f"{name}: {packed:,} bytes unpack to {unpacked:,} or more, which texts do not",
            hint="if it is meant, unpack it, and give the file",
        )


@contextmanager
def reading(name: Path | str) -> Iterator[None]:
    """Errors of the file system inside become a `SourceError` that names the file."""
    try:
        yield
    except _READ_ERRORS as error:
        raise read_error(name, error) from None


def read_error(name: Path | str, error: BaseException) -> SourceError:
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return SourceError(f"cannot read {name}: {error.strerror or error}")
    kind = "zip" if isinstance(error, (zipfile.BadZipFile, NotImplementedError)) else "gzip"
    return SourceError(f"cannot read {name}: cut short or not {kind} ({error})")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
