"""The sealed cache file: HDF5 for everyone, a seal in its user block for us.

The file is plain HDF5 with contiguous datasets, readable by anything that reads HDF5. In front of it
stands a user block with the *seal*: the length of the file, where every column lies, and checksums of
all bytes. featcache itself reads through the seal (plain file reads and a memory map), so that a
damaged file is refused before any HDF5 code sees it. `docs/cache-format.md` has every byte.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from featcache.errors import CacheError, CorruptCache
from featcache.system import durable as files
from featcache.system.durable import explained, make_folder, publish, require_space, temporary_beside

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

    HDF5 lays out the empty file in memory; its few bytes and the rows are then written with plain file
    writes into space that was reserved first, so that a full disk is an ordinary error and never reaches
    HDF5, which can crash on one.

    Args:
        meta: JSON-able description, stored as `/meta`; small strings also become attributes.
        replace: take the place of a file of that name, in one step, instead of leaving it.

    Returns:
        False when a file of that name was there already; it is left as it is.

    Raises:
        CacheError: disk full or any other refusal of the file system; nothing is published.
    """
    columns = _with_note(meta, columns)
    layout = _lay_out(meta, columns)
    require_space(path.parent, layout.size, f"{path.name}")
    temporary = temporary_beside(path)
    with explained(path):
        make_folder(path.parent)
        try:
            with files.disk.open(temporary, "x+b") as file:
                files.disk.reserve(file, layout.size)
                _fill(file, layout, columns)
            return publish(temporary, path, replace=replace)
        except BaseException:
            files.disk.unlink(temporary)
            raise


def sealed_size(meta: Mapping[str, Any], columns: list[Column]) -> int:
    """Bytes of the file that `write_sealed` would write; no chunk is asked for."""
    return _lay_out(meta, _with_note(meta, columns)).size


def _with_note(meta: Mapping[str, Any], columns: list[Column]) -> list[Column]:
    """The columns with `meta` as the last of them."""
    content = json.dumps(meta, sort_keys=True, ensure_ascii=True).encode("ascii")
    return [*columns, Column("meta", (len(content),), "uint8", [np.frombuffer(content, dtype=np.uint8)])]


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
        if path.exists() and not path.is_file():  # to open a named pipe is to wait for ever
            raise CacheError(f"cannot read {path}: it is no file")
        try:
            # Kept open: who has the file goes on reading it, also after it was replaced or removed.
            self._file = open(path, "rb")  # noqa: SIM115
            self.nbytes = os.fstat(self._file.fileno()).st_size
            seal = read_seal(self._file, path)
            self.digest: str = seal["digest"]
            self._entries: dict[str, dict[str, Any]] = checked_entries(seal, self.nbytes, path)
            structure = _structure_hash(self._file, self.nbytes, seal["user_block"], self._entries)
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror or error}") from error
        if structure != seal["structure"]:
            raise CorruptCache(f"{path} is damaged outside its columns", hint=_HINT)
        self._verified: set[str] = set()
        self.meta: dict[str, Any] = self._read_meta()

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
        mapped = self._map(entry["offset"], DTYPES[entry["dtype"]], tuple(entry["shape"]))
        if name not in self._verified:
            self._check(name, entry, mapped)
            self._verified.add(name)
        return mapped

    def verify(self) -> int:
        """Check every column; the bytes checked."""
        for name in self._entries:
            self._verified.discard(name)
            self.column(name)
        return self.nbytes

    def checks(self) -> Iterator[tuple[str, Callable[[], int]]]:
        """What `verify` does in steps: what is checked, and a function that does it and returns its bytes."""
        for name in self.names:
            yield name, lambda name=name: self.column(name).nbytes  # type: ignore[misc]

    def total(self, name: str) -> int:
        """The sum of a column of numbers."""
        return int(np.asarray(self.column(name)).sum(dtype=np.int64))

    def _read_meta(self) -> dict[str, Any]:
        try:
            meta = json.loads(self.column("meta").tobytes())
        except (ValueError, RecursionError) as error:
            raise CorruptCache(f"{self.path}: /meta is no JSON", hint=_HINT) from error
        if not isinstance(meta, dict):
            raise CorruptCache(f"{self.path}: /meta is no JSON object", hint=_HINT)
        return meta

    def _map(self, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        if not math.prod(shape):
            return np.empty(shape, dtype)
        try:
            return np.memmap(self._file, dtype, mode="r", offset=offset, shape=shape)
        except (OSError, ValueError) as error:  # ValueError: the file became shorter since it was opened
            raise CorruptCache(f"{self.path} cannot be mapped: {error}", hint=_HINT) from error

    def _check(self, name: str, entry: Mapping[str, Any], mapped: np.ndarray) -> None:
        """Compare the checksums, through the very map that is handed out: its pages are loaded once."""
        expected = self._map(entry["checksums"], "|u1", (chunk_count(entry["bytes"]), 16)).tobytes()
        for number in self._first_damaged(entry, mapped, expected):
            if number is not None:
                rows = _rows_of_chunk(entry, number)
                raise CorruptCache(f"{self.path}: block {number} of {name} ({rows}) is damaged", hint=_HINT)

    def _first_damaged(
        self, entry: Mapping[str, Any], mapped: np.ndarray, expected: bytes
    ) -> Iterable[int | None]:
        """The first damaged block, or None, of each of some parts of a column, in order."""
        content = mapped.reshape(-1).view(np.uint8).data

        def first_damaged(numbers: range) -> int | None:
            return next((number for number in numbers if not intact(content, expected, number)), None)

        return _in_threads(first_damaged, chunk_count(entry["bytes"]))


def _in_threads(search: Callable[[range], int | None], count: int) -> Iterable[int | None]:
    """`search` of 0 to count - 1, a range for each processor; xxhash lets other threads run."""
    workers = min(8, os.cpu_count() or 1) if count >= 16 else 1
    borders = [count * number // workers for number in range(workers + 1)]
    ranges = [range(*pair) for pair in itertools.pairwise(borders)]
    if workers == 1:
        return map(search, ranges)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(search, ranges))


_HINT = "remove it with featcache cache rm, then run featcache extract again (for token states: finetune)"


@dataclass(frozen=True)
class _Layout:
    """Where everything lies in a file to be written, and the bytes HDF5 wants between the columns."""

    size: int
    user_block: int
    entries: dict[str, dict[str, Any]]
    pages: dict[int, bytearray]


class _Sketch(io.RawIOBase):
    """A file in memory of which only the pages that were written exist; the rows are not among them."""

    PAGE = 4096

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = self.position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def truncate(self, size: int | None = None) -> int:
        self.size = self.position if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for page, inside, part in self._parts(view):
            part[:] = self.pages.get(page, bytes(self.PAGE))[inside]
        return len(view)

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        for page, inside, part in self._parts(view):
            self.pages.setdefault(page, bytearray(self.PAGE))[inside] = part
        self.size = max(self.size, self.position)
        return len(view)

    def _parts(self, view: memoryview) -> Iterator[tuple[int, slice, memoryview]]:
        """Page, place in the page, and part of `view` that belongs there; moves the position on."""
        while view:
            page, start = divmod(self.position, self.PAGE)
            part = view[: self.PAGE - start]
            yield page, slice(start, start + len(part)), part
            self.position += len(part)
            view = view[len(part) :]


def _lay_out(meta: Mapping[str, Any], columns: list[Column]) -> _Layout:
    """Let HDF5 make an empty file with space for every column."""
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
    sketch = _Sketch()
    with h5py.File(sketch, "w", userblock_size=user_block, libver=("earliest", "v110")) as file:
        for key, value in meta.items():
            if isinstance(value, (str, int)):
                file.attrs[key] = value
        for column in columns:
            sums = (chunk_count(column.nbytes), 16)
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
    _require_sense(sketch.size, user_block, entries)
    return _Layout(sketch.size, user_block, entries, sketch.pages)


def _require_sense(size: int, user_block: int, entries: Mapping[str, dict[str, Any]]) -> None:
    """HDF5 is free to count offsets from elsewhere than the file's first byte; make sure it does not."""
    places = [
        (start, start + nbytes)
        for entry in entries.values()
        for start, nbytes in (
            (entry["offset"], entry["bytes"]),
            (entry["checksums"], 16 * chunk_count(entry["bytes"])),
        )
        if nbytes
    ]
    borders = [user_block, *(border for place in sorted(places) for border in place), size]
    if borders != sorted(borders):
        raise CacheError("this HDF5 library places data where it cannot be")


def _fill(file: BinaryIO, layout: _Layout, columns: list[Column]) -> None:
    """Write what HDF5 wants, the rows and their checksums, then the seal."""
    for page, content in layout.pages.items():
        file.seek(page * _Sketch.PAGE)
        file.write(content[: layout.size - page * _Sketch.PAGE])
    for column in columns:
        entry = layout.entries[column.name]
        file.seek(entry["offset"])
        sums = _write_column(file, column)
        file.seek(entry["checksums"])
        file.write(sums)
    file.flush()
    seal = {
        "length": layout.size,
        "user_block": layout.user_block,
        "structure": _structure_hash(file, layout.size, layout.user_block, layout.entries),
        "columns": layout.entries,
    }
    head = MAGIC + f"{VERSION}\n".encode() + json.dumps(seal, sort_keys=True).encode() + b"\n"
    head += xxhash.xxh3_128_hexdigest(head).encode() + b"\n"
    if len(head) > layout.user_block:
        raise CacheError(f"seal of {len(head)} bytes does not fit the user block of {layout.user_block}")
    file.seek(0)
    file.write(head.ljust(layout.user_block, b"\0"))


def _write_column(file: BinaryIO, column: Column) -> bytes:
    """Write all rows; the checksums of the bytes, one for each CHUNK."""
    sums, chunk, room, written = bytearray(), xxhash.xxh3_128(), CHUNK, 0
    for rows in column.chunks:
        content = np.ascontiguousarray(rows, dtype=DTYPES[column.dtype]).reshape(-1).view(np.uint8).data
        file.write(content)
        written += len(content)
        while content:
            part = content[:room]
            chunk.update(part)
            content, room = content[len(part) :], room - len(part)
            if not room:
                sums += chunk.digest()
                chunk, room = xxhash.xxh3_128(), CHUNK
    if written != column.nbytes:
        raise CacheError(f"{column.name}: {written} bytes came, {column.nbytes} were announced")
    if room < CHUNK:
        sums += chunk.digest()
    return bytes(sums)


def read_seal(file: BinaryIO, path: Path | str) -> dict[str, Any]:
    """The seal of a file that begins like `file`, its checksum checked; `path` is what errors call it.

    Returns:
        The seal, and under `digest` that checksum, which covers every byte of the file by way of others.
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
        seal: dict[str, Any] = json.loads(lines[1])
        padding = head[len(body) + len(lines[2]) + 1 : seal["user_block"]]
        sized = 0 < seal["user_block"] <= LONGEST_SEAL and isinstance(seal["length"], int)
        if padding.strip(b"\0") or not sized or "structure" not in seal:
            raise ValueError("padding")
    except (ValueError, IndexError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCache(f"{path}: the seal is damaged", hint=_HINT) from error
    return {**seal, "digest": lines[2].decode("ascii")}


def checked_entries(seal: Mapping[str, Any], size: int, path: Path | str) -> dict[str, dict[str, Any]]:
    """The seal's columns, each of a known type and within the file's `size`."""
    if seal["length"] != size:
        raise CorruptCache(f"{path} has {size} bytes, sealed with {seal['length']}", hint=_HINT)
    try:
        columns = dict(seal["columns"])
        places = [place for entry in columns.values() for place in _places(entry)]
        borders = [seal["user_block"], *(border for place in sorted(places) for border in place), size]
        if borders != sorted(borders):
            raise ValueError("columns lie over each other, or not within the file")
        if columns["meta"]["dtype"] != "uint8":
            raise ValueError("no description")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCache(f"{path}: the seal makes no sense: {error}", hint=_HINT) from error
    return columns


def _places(entry: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Where a column and its checksums begin and end; nothing for empty ones."""
    numbers = (entry["offset"], entry["bytes"], entry["checksums"], *entry["shape"])
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a place or shape that is no number")
    if math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize != entry["bytes"]:
        raise ValueError("a column of another length than its shape")
    if entry["bytes"]:
        yield entry["offset"], entry["offset"] + entry["bytes"]
        yield entry["checksums"], entry["checksums"] + 16 * chunk_count(entry["bytes"])


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


def intact(content: memoryview, sums: bytes, number: int) -> bool:
    """Whether one block of a column is what its checksum, one of `sums`, says."""
    chunk = content[number * CHUNK : (number + 1) * CHUNK]
    return xxhash.xxh3_128_digest(chunk) == sums[16 * number : 16 * number + 16]


def chunk_count(nbytes: int) -> int:
    """How many blocks, each with a checksum of its own, so many bytes have."""
    return -(-nbytes // CHUNK)


def _rows_of_chunk(entry: Mapping[str, Any], number: int) -> str:
    row_bytes = max(entry["bytes"] // max(entry["shape"][0], 1), 1)
    first = number * CHUNK // row_bytes
    last = min((number + 1) * CHUNK - 1, entry["bytes"] - 1) // row_bytes
    return f"rows {first} to {last}"
