"""The seal of a cache file: its length, where each column is, and checksums that cover every byte.

The seal is in the user block, in front of the HDF5 data. `docs/cache-format.md` describes every byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import xxhash

from featcache.errors import CacheError, CorruptCache

MAGIC = b"featcache cache "
VERSION = 1
CHUNK = 1 << 20  # bytes under one checksum
DTYPES = {
    "float16": "<f2", "float32": "<f4", "float64": "<f8", "int64": "<i8", "int32": "<i4", "uint8": "|u1",
}  # fmt: skip
LONGEST_SEAL = 1 << 22
HINT = "remove it with featcache cache rm, then run featcache extract again (for token states: finetune)"


@dataclass(frozen=True)
class ColumnEntry:
    """Where a column is in the file.

    Attributes:
        offset, bytes: of its rows.
        dtype: a key of `DTYPES`.
        checksums: offset of the XXH3-128 sums of its chunks, 16 bytes each.
    """

    offset: int
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    checksums: int

    def places(self) -> Iterator[tuple[int, int]]:
        """Where the rows and their checksums begin and end; nothing for an empty column.

        Raises:
            ValueError: numbers that do not fit each other.
        """
        if min(self.offset, self.bytes, self.checksums, *self.shape) < 0 or self.dtype not in DTYPES:
            raise ValueError("a negative number or an unknown dtype")
        if not 1 <= len(self.shape) <= 2 or max(self.shape) >= 1 << 60:
            raise ValueError("a column that is neither a vector nor a matrix")
        if math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize != self.bytes:
            raise ValueError("a column of another length than its shape")
        if self.bytes:
            yield self.offset, self.offset + self.bytes
            yield self.checksums, self.checksums + 16 * chunk_count(self.bytes)

    def rows_of_chunk(self, number: int) -> str:
        """The rows that have bytes in a chunk, for messages."""
        row_bytes = max(self.bytes // max(self.shape[0], 1), 1)
        first = number * CHUNK // row_bytes
        last = min((number + 1) * CHUNK - 1, self.bytes - 1) // row_bytes
        return f"rows {first} to {last}"


@dataclass(frozen=True)
class Seal:
    """The content of a seal.

    Attributes:
        length: bytes of the file.
        user_block: bytes in front of the HDF5 data.
        structure: checksum of all bytes that belong neither to the user block nor to a column.
        digest: checksum of the seal; it covers every byte of the file by way of the other checksums.
    """

    length: int
    user_block: int
    structure: str
    columns: dict[str, ColumnEntry]
    digest: str = ""

    def to_bytes(self) -> bytes:
        """The user block.

        Raises:
            CacheError: the seal does not fit.
        """
        content = asdict(self)
        del content["digest"]
        head = MAGIC + f"{VERSION}\n".encode() + json.dumps(content, sort_keys=True).encode() + b"\n"
        head += xxhash.xxh3_128_hexdigest(head).encode() + b"\n"
        if len(head) > self.user_block:
            raise CacheError(
                f"seal of {len(head)} bytes does not fit the user block of {self.user_block}",
                hint="this is a fault of featcache: please report it",
            )
        return head.ljust(self.user_block, b"\0")

    def check(self, size: int, path: Path | str) -> None:
        """Refuse a seal that does not fit a file of `size` bytes.

        Raises:
            CorruptCache: another length, or columns that overlap or are outside the file.
        """
        if self.length != size:
            raise CorruptCache(f"{path} has {size} bytes, sealed with {self.length}", hint=HINT)
        try:
            if not are_apart(self.user_block, self.columns, size):
                raise ValueError("columns overlap, or are not within the file")
            if "meta" not in self.columns or self.columns["meta"].dtype != "uint8":
                raise ValueError("no description")
        except ValueError as error:
            raise CorruptCache(f"{path}: the seal makes no sense: {error}", hint=HINT) from error


def are_apart(start: int, columns: Mapping[str, ColumnEntry], end: int) -> bool:
    """Whether columns and checksums lie between `start` and `end`, none over another.

    Raises:
        ValueError: a column whose numbers do not fit each other.
    """
    places = sorted(place for entry in columns.values() for place in entry.places())
    borders = [start, *(border for place in places for border in place), end]
    return borders == sorted(borders)


def read_seal(file: BinaryIO, path: Path | str) -> Seal:
    """The seal of a file that begins like `file`, after a check of its checksum.

    Args:
        path: the name of the file in errors.

    Raises:
        CorruptCache: a damaged seal.
        CacheError: no cache file, or one of another format version.
    """
    first = file.read(len(MAGIC) + 8)
    if not first.startswith(MAGIC):
        raise CacheError(f"{path} is no featcache cache file", hint="see docs/cache-format.md")
    version = first[len(MAGIC) :].partition(b"\n")[0]
    if version != str(VERSION).encode():
        raise CacheError(
            f"{path} has cache format {version.decode('ascii', 'replace')}; this is format {VERSION}",
            hint="update featcache, or extract again into another --cache-dir",
        )
    file.seek(0)
    head = file.read(LONGEST_SEAL)
    lines = head.split(b"\n", 3)
    try:
        body = lines[0] + b"\n" + lines[1] + b"\n"
        if xxhash.xxh3_128_hexdigest(body).encode() != lines[2]:
            raise ValueError("checksum")
        seal = msgspec.convert(json.loads(lines[1]), Seal)
        padding = head[len(body) + len(lines[2]) + 1 : seal.user_block]
        if padding.strip(b"\0") or not 0 < seal.user_block <= LONGEST_SEAL:
            raise ValueError("padding")
    except (ValueError, IndexError, RecursionError, msgspec.ValidationError) as error:
        raise CorruptCache(f"{path}: the seal is damaged", hint=HINT) from error
    return replace(seal, digest=lines[2].decode("ascii"))


def gaps(size: int, user_block: int, columns: Mapping[str, ColumnEntry]) -> list[tuple[int, int]]:
    """Where the bytes after the user block that belong to no column begin and end."""
    start, found = user_block, []
    for entry in sorted(columns.values(), key=lambda entry: entry.offset):
        if entry.bytes:
            found.append((start, entry.offset))
            start = entry.offset + entry.bytes
    return [*found, (start, size)]


def structure_hash(file: BinaryIO, size: int, user_block: int, columns: Mapping[str, ColumnEntry]) -> str:
    """Checksum of every byte after the user block that belongs to no column."""
    digest = xxhash.xxh3_128()
    for at, end in gaps(size, user_block, columns):
        file.seek(at)
        while content := file.read(min(CHUNK, max(end - at, 0))):
            digest.update(content)
            at += len(content)
    return digest.hexdigest()


def intact(content: memoryview, sums: bytes, number: int) -> bool:
    """Whether a chunk of a column is what its checksum, one of `sums`, says."""
    chunk = content[number * CHUNK : (number + 1) * CHUNK]
    return xxhash.xxh3_128_digest(chunk) == sums[16 * number : 16 * number + 16]


def chunk_count(nbytes: int) -> int:
    """How many chunks, each with its own checksum, so many bytes have."""
    return -(-nbytes // CHUNK)
