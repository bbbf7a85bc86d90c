"""The sealed cache file: HDF5 for everyone, a seal in its user block for us.

The file is plain HDF5 with contiguous datasets, readable by anything that reads HDF5. In front of it
stands a user block with the *seal*: the length of the file, where every column lies, and checksums of
all bytes. featcache itself reads through the seal (plain file reads and a memory map), so that a
damaged file is refused before any HDF5 code sees it. `docs/cache-format.md` has every byte.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from featcache.errors import CacheError, CorruptCache
from featcache.files import explained, publish, require_space, temporary_beside

MAGIC = b"featcache cache "
VERSION = 1
CHUNK = 1 << 20  # bytes under one checksum
DTYPES = {"float16": "<f2", "float32": "<f4", "int64": "<i8", "int32": "<i4", "uint8": "|u1"}
LONGEST_SEAL = 1 << 22


@dataclass(frozen=True)
class Column:
    """A dataset to be written: its name, its type, and its rows in order.

    Attributes:
        name: path in the file, e.g. `views/last-cls`.
        shape: `[N]` or `[N, D]`.
        dtype: a key of `DTYPES`.
        chunks: arrays `[n, ...]` that add up to `shape`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: Iterable[np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def write_sealed(
    path: Path, meta: Mapping[str, Any], columns: list[Column], *, replace: bool = False
) -> bool:
    """Write a cache file, seal it, and publish it under `path` unless that is taken.

    HDF5 lays out the empty file; the rows are then written with plain file writes into space that
    was reserved first, so that a full disk is an ordinary error and never reaches HDF5.

    Args:
        meta: JSON-able description, stored as `/meta`; small strings also become attributes.
        replace: take the place of a file of that name, in one step, instead of leaving it.

    Returns:
        False when a file of that name was there already; it is left as it is.

    Raises:
        CacheError: disk full or any other refusal of the file system; nothing is published.
    """
    content = json.dumps(meta, sort_keys=True, ensure_ascii=True).encode("ascii")
    note = Column("meta", (len(content),), "uint8", [np.frombuffer(content, dtype=np.uint8)])
    columns = [*columns, note]
    require_space(path.parent, sum(column.nbytes for column in columns) + (1 << 16), f"{path.name}")
    temporary = temporary_beside(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _reserve(temporary, sum(column.nbytes for column in columns) + (1 << 16))
            try:
                entries = _lay_out(temporary, meta, columns)
            except RuntimeError as error:  # what HDF5 makes of a full disk
                raise OSError(errno.ENOSPC, "no space for the file's layout") from error
            with open(temporary, "r+b") as file:
                _fill(file, entries, columns)
            return publish(temporary, path, replace=replace)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class SealedFile:
    """A sealed cache file, opened for reading.

    Opening checks the seal, the length and every byte outside the columns; reading a column checks
    the column. Nothing is read from HDF5, no memory is allocated on the file's word.

    Raises:
        CorruptCache: any byte that is not the byte that was written.
        CacheError: no such file, another format or a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Kept open: who has the file goes on reading it, also after it was replaced or removed.
            self._file = open(path, "rb")  # noqa: SIM115
            self.nbytes = os.fstat(self._file.fileno()).st_size
            seal = _read_seal(self._file, path)
            self._entries: dict[str, dict[str, Any]] = _checked_entries(seal, self.nbytes, path)
            structure = _structure_hash(self._file, self.nbytes, seal["user_block"], self._entries)
            if structure != seal["structure"]:
                raise CorruptCache(f"{path} is damaged outside its columns", hint=_HINT)
            self._verified: set[str] = set()
            self.meta: dict[str, Any] = json.loads(self.column("meta").tobytes())
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror or error}") from error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(self._entries)

    def column(self, name: str) -> np.ndarray:
        """A column as a read-only memory map, after its checksums were checked.

        Raises:
            CorruptCache: naming the column, the block and its rows.
            KeyError: no such column.
        """
        entry = self._entries[name]
        mapped = self._map(entry)
        if name not in self._verified:
            self._verify(name, entry)
            self._verified.add(name)
        return mapped

    def verify(self) -> int:
        """Check every column; the bytes checked."""
        for name in self._entries:
            self._verified.discard(name)
            self.column(name)
        return self.nbytes

    def _map(self, entry: Mapping[str, Any]) -> np.ndarray:
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if not math.prod(shape):
            return np.empty(shape, dtype)
        return np.memmap(self._file, dtype, mode="r", offset=entry["offset"], shape=shape)

    def _verify(self, name: str, entry: Mapping[str, Any]) -> None:
        # By a map of its own: the file's position would be shared with other threads.
        whole = np.memmap(self._file, np.uint8, mode="r")
        count, end = _chunk_count(entry["bytes"]), entry["offset"] + entry["bytes"]
        expected = whole[entry["checksums"] :][: 16 * count].tobytes()
        for number in range(count):
            start = entry["offset"] + number * CHUNK
            chunk = whole[start : min(start + CHUNK, end)].tobytes()
            if xxhash.xxh3_128_digest(chunk) != expected[16 * number : 16 * number + 16]:
                rows = _rows_of_chunk(entry, number)
                raise CorruptCache(f"{self.path}: block {number} of {name} ({rows}) is damaged", hint=_HINT)


_HINT = "remove it with featcache cache rm, then run featcache extract again"


def _reserve(path: Path, nbytes: int) -> None:
    """Let the disk say now, as an ordinary error, that it cannot hold `nbytes` under that name."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "xb") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
        path.unlink()


def _lay_out(path: Path, meta: Mapping[str, Any], columns: list[Column]) -> dict[str, dict[str, Any]]:
    """Create the HDF5 file with space for every column; where each one lies."""
    import h5py

    user_block = 512
    while user_block < 1024 + 400 * len(columns):
        user_block *= 2
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_layout(h5py.h5d.CONTIGUOUS)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    create.set_obj_track_times(False)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    entries: dict[str, dict[str, Any]] = {}
    with h5py.File(path, "x", userblock_size=user_block, libver=("earliest", "v110")) as file:
        for key, value in meta.items():
            if isinstance(value, (str, int)):
                file.attrs[key] = value
        for column in columns:
            sums = (_chunk_count(column.nbytes), 16)
            places = []
            for name, shape, dtype in (
                (column.name, column.shape, DTYPES[column.dtype]),
                (f"checksums/{column.name}", sums, "|u1"),
            ):
                space = h5py.h5s.create_simple(shape)
                kind = h5py.h5t.py_create(np.dtype(dtype))
                made = h5py.h5d.create(file.id, name.encode(), kind, space, create, link)
                places.append(made.get_offset())
            entries[column.name] = {
                "offset": (places[0] or 0),
                "bytes": column.nbytes,
                "shape": list(column.shape),
                "dtype": column.dtype,
                "checksums": (places[1] or 0),
            }
    return _absolute(path, entries, user_block)


def _absolute(path: Path, entries: dict[str, dict[str, Any]], user_block: int) -> dict[str, dict[str, Any]]:
    """HDF5 counts offsets from the file's first byte; make sure that is so, by the file's size."""
    size = path.stat().st_size
    ends = [entry["offset"] + entry["bytes"] for entry in entries.values()]
    if any(entry["offset"] < user_block for entry in entries.values() if entry["bytes"]) or max(ends) > size:
        raise CacheError(f"{path}: this HDF5 library places data where it cannot be")
    return entries


def _fill(file: BinaryIO, entries: Mapping[str, dict[str, Any]], columns: list[Column]) -> None:
    """Write the rows and their checksums, then the seal."""
    size = os.fstat(file.fileno()).st_size
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    for column in columns:
        entry = entries[column.name]
        file.seek(entry["offset"])
        sums = _write_column(file, column)
        file.seek(entry["checksums"])
        file.write(sums)
    file.flush()
    user_block = _user_block_size(file)
    seal = {
        "length": size,
        "user_block": user_block,
        "structure": _structure_hash(file, size, user_block, entries),
        "columns": entries,
    }
    head = MAGIC + f"{VERSION}\n".encode() + json.dumps(seal, sort_keys=True).encode() + b"\n"
    head += xxhash.xxh3_128_hexdigest(head).encode() + b"\n"
    if len(head) > user_block:
        raise CacheError(f"seal of {len(head)} bytes does not fit the user block of {user_block}")
    file.seek(0)
    file.write(head.ljust(user_block, b"\0"))
    file.flush()


def _write_column(file: BinaryIO, column: Column) -> bytes:
    """Write all rows; the checksums of the bytes, one for each CHUNK."""
    sums, pending, written = bytearray(), bytearray(), 0
    for rows in column.chunks:
        content = np.ascontiguousarray(rows, dtype=DTYPES[column.dtype]).tobytes()
        file.write(content)
        written += len(content)
        pending += content
        while len(pending) >= CHUNK:
            sums += xxhash.xxh3_128_digest(pending[:CHUNK])
            del pending[:CHUNK]
    if written != column.nbytes:
        raise CacheError(f"{column.name}: {written} bytes came, {column.nbytes} were announced")
    if pending:
        sums += xxhash.xxh3_128_digest(pending)
    return bytes(sums)


def _user_block_size(file: BinaryIO) -> int:
    """Where HDF5's own signature stands: at 512 or a later power of two."""
    place = 512
    while True:
        file.seek(place)
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            return place
        place *= 2


def _read_seal(file: BinaryIO, path: Path) -> dict[str, Any]:
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
        seal: dict[str, Any] = json.loads(lines[1])
        padding = head[len(body) + len(lines[2]) + 1 : seal["user_block"]]
        if padding.strip(b"\0") or not isinstance(seal["length"], int) or "structure" not in seal:
            raise ValueError("padding")
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise CorruptCache(f"{path}: the seal is damaged", hint=_HINT) from error
    return seal


def _checked_entries(seal: Mapping[str, Any], size: int, path: Path) -> dict[str, dict[str, Any]]:
    """The seal's columns, each of a known type and within the file's `size`."""
    if seal["length"] != size:
        raise CorruptCache(f"{path} has {size} bytes, sealed with {seal['length']}", hint=_HINT)
    try:
        for name, entry in seal["columns"].items():
            expected = math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize
            ends = (entry["offset"] + entry["bytes"], entry["checksums"] + 16 * _chunk_count(entry["bytes"]))
            if expected != entry["bytes"] or min(entry["shape"], default=0) < 0 or max(ends) > size:
                raise CorruptCache(f"{path}: column {name} does not lie within the file", hint=_HINT)
        if "meta" not in seal["columns"]:
            raise CorruptCache(f"{path} does not say what it holds", hint=_HINT)
        return dict(seal["columns"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptCache(f"{path}: the seal makes no sense", hint=_HINT) from error


def _structure_hash(
    file: BinaryIO, size: int, user_block: int, entries: Mapping[str, Mapping[str, Any]]
) -> str:
    """Checksum of every byte after the user block that belongs to no column."""
    digest = xxhash.xxh3_128()
    for start, end in _gaps(size, user_block, entries):
        file.seek(start)
        while start < end:
            content = file.read(min(CHUNK, end - start))
            if not content:
                break
            digest.update(content)
            start += len(content)
    return digest.hexdigest()


def _gaps(size: int, start: int, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    for entry in sorted(entries.values(), key=lambda entry: entry["offset"]):
        if entry["bytes"]:
            yield start, entry["offset"]
            start = entry["offset"] + entry["bytes"]
    yield start, size


def _chunk_count(nbytes: int) -> int:
    return -(-nbytes // CHUNK)


def _rows_of_chunk(entry: Mapping[str, Any], number: int) -> str:
    row_bytes = max(entry["bytes"] // max(entry["shape"][0], 1), 1)
    first = number * CHUNK // row_bytes
    last = min((number + 1) * CHUNK - 1, entry["bytes"] - 1) // row_bytes
    return f"rows {first} to {last}"
