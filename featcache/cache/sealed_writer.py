"""Write cache files: HDF5 lays out the file, plain file writes fill it, and the seal is written last."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from featcache.cache.seal import (
    CHUNK,
    DTYPES,
    ColumnEntry,
    Seal,
    are_apart,
    chunk_count,
    gaps,
    structure_hash,
)
from featcache.errors import CacheError
from featcache.system import durable as files
from featcache.system.durable import explained, make_folder, publish, require_space, temporary_beside

AT_ONCE = 16 << 20  # bytes after which the disk begins, so that it works while the next rows are made


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

    Args:
        meta: JSON-able description, stored as `/meta`; small strings also become attributes.
        replace: take the place of a file of that name, in one step, instead of leaving it.

    Returns:
        False when a file of that name was there already; it is left as it is.

    Raises:
        CacheError: disk full or any other refusal of the file system; nothing is published.
    """
    return write_unsealed(path, meta, columns).publish(path, meta, replace=replace)


def write_unsealed(path: Path, meta: Mapping[str, Any], columns: list[Column]) -> UnsealedFile:
    """Write the rows of a cache file under a temporary name beside `path`.

    HDF5 lays out the empty file in memory; the rows and, in `UnsealedFile.publish`, its few bytes are written
    with plain file writes into space that was reserved first, so that a full disk is an ordinary error and
    never reaches HDF5, which can crash on one.

    Args:
        meta: as long as the description that the file will have.

    Raises:
        CacheError: see `write_sealed`; no file is left.
    """
    layout = _lay_out(meta, _with_note(meta, columns))
    require_space(path.parent, layout.size, f"{path.name}")
    temporary = temporary_beside(path)
    with explained(path):
        make_folder(path.parent)
        try:
            with files.disk.open(temporary, "x+b") as file:
                files.disk.reserve(file, layout.size)
                sums = {column.name: _write_column(file, column, layout) for column in columns}
        except BaseException:
            files.disk.unlink(temporary)
            raise
    return UnsealedFile(temporary, columns, layout, sums)


def sealed_size(meta: Mapping[str, Any], columns: list[Column]) -> int:
    """Bytes of the file that `write_sealed` would write; no chunk is asked for."""
    return _lay_out(meta, _with_note(meta, columns)).size


def _with_note(meta: Mapping[str, Any], columns: list[Column]) -> list[Column]:
    """The columns with `meta` as the last of them."""
    content = json.dumps(meta, sort_keys=True, ensure_ascii=True).encode("ascii")
    return [*columns, Column("meta", (len(content),), "uint8", [np.frombuffer(content, dtype=np.uint8)])]


@dataclass(frozen=True)
class _FileLayout:
    """Where everything is in a file to be written, and the bytes of HDF5 itself."""

    size: int
    user_block: int
    entries: dict[str, ColumnEntry]
    sketch: _Sketch


@dataclass(frozen=True)
class UnsealedFile:
    """A cache file that has all rows, and no description and no name yet.

    Attributes:
        columns: what was written; their chunks are used up.
        sums: checksums of the chunks, by column.
    """

    temporary: Path
    columns: list[Column]
    layout: _FileLayout
    sums: dict[str, bytes]

    def publish(self, path: Path, meta: Mapping[str, Any], *, replace: bool = False) -> bool:
        """Describe the file, seal it, and publish it under `path`, in the same folder, unless that is taken.

        Args:
            meta, replace: see `write_sealed`.

        Returns:
            False when a file of that name was there already; it is left as it is.

        Raises:
            CacheError: see `write_sealed`; no file is left.
        """
        columns = _with_note(meta, self.columns)
        layout = _lay_out(meta, columns)
        with explained(path):
            try:
                if (layout.size, layout.entries) != (self.layout.size, self.layout.entries):
                    raise CacheError(
                        f"{path}: the description has another length than was announced",
                        hint="this is a fault of featcache: please report it",
                    )
                with files.disk.open(self.temporary, "r+b") as file:
                    note = columns[-1]
                    _seal(file, layout, {**self.sums, note.name: _write_column(file, note, layout)})
                return publish(self.temporary, path, replace=replace)
            except BaseException:
                files.disk.unlink(self.temporary)
                raise


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

    def content(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`."""
        found = bytearray(end - start)
        self.seek(start)
        self.readinto(found)
        return bytes(found)

    def _parts(self, view: memoryview) -> Iterator[tuple[int, slice, memoryview]]:
        """Page, place in the page, and part of `view` that belongs there; moves the position on."""
        while view:
            page, start = divmod(self.position, self.PAGE)
            part = view[: self.PAGE - start]
            yield page, slice(start, start + len(part)), part
            self.position += len(part)
            view = view[len(part) :]


def _lay_out(meta: Mapping[str, Any], columns: list[Column]) -> _FileLayout:
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
    entries: dict[str, ColumnEntry] = {}
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
            entries[column.name] = ColumnEntry(
                offset=places[0] or 0,
                bytes=column.nbytes,
                shape=column.shape,
                dtype=column.dtype,
                checksums=places[1] or 0,
            )
    if not are_apart(user_block, entries, sketch.size):  # HDF5 may count offsets from another byte
        raise CacheError(
            "this HDF5 library places data where it cannot be",
            hint="use the h5py of PyPI: pip install --force-reinstall h5py",
        )
    return _FileLayout(sketch.size, user_block, entries, sketch)


def _seal(file: BinaryIO, layout: _FileLayout, sums: Mapping[str, bytes]) -> None:
    """Write what HDF5 wants and the checksums of the columns, then the seal."""
    for start, end in gaps(layout.size, layout.user_block, layout.entries):
        file.seek(start)
        file.write(layout.sketch.content(start, end))
    for name, entry in layout.entries.items():
        file.seek(entry.checksums)
        file.write(sums[name])
    file.flush()
    structure = structure_hash(file, layout.size, layout.user_block, layout.entries)
    head = Seal(layout.size, layout.user_block, structure, layout.entries).to_bytes()
    file.seek(0)
    file.write(head)


def _write_column(file: BinaryIO, column: Column, layout: _FileLayout) -> bytes:
    """Write all rows in their place; the checksums of the bytes, one for each CHUNK."""
    sums, chunk, room, written, begun = bytearray(), xxhash.xxh3_128(), CHUNK, 0, 0
    start = layout.entries[column.name].offset
    file.seek(start)
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
        if written - begun >= AT_ONCE:
            files.disk.begin_writing(file, start + begun, written - begun)
            begun = written
    if written != column.nbytes:
        raise CacheError(
            f"{column.name}: {written} bytes came, {column.nbytes} were announced",
            hint="this is a fault of featcache: please report it",
        )
    if room < CHUNK:
        sums += chunk.digest()
    return bytes(sums)
