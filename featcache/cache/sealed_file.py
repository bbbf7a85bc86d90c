"""Read cache files through their seal, with plain file reads and a memory map.

A cache file is plain HDF5 with contiguous datasets, which anything that reads HDF5 can read. featcache
itself reads it through the seal, so that a damaged file is refused before any HDF5 code sees it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from featcache.cache.description import FileDescription
from featcache.cache.seal import DTYPES, HINT, ColumnEntry, chunk_count, intact, read_seal, structure_hash
from featcache.errors import CacheError, CorruptCache
from featcache.system.documents import read_json


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
            raise CacheError(f"cannot read {path}: it is no file", hint="move it out of the cache folder")
        try:
            # Kept open, so that it can be read after it was replaced or removed.
            self._file = open(path, "rb")  # noqa: SIM115
            self.nbytes = os.fstat(self._file.fileno()).st_size
            seal = read_seal(self._file, path)
            seal.check(self.nbytes, path)
            self.digest = seal.digest
            self._entries = seal.columns
            structure = structure_hash(self._file, self.nbytes, seal.user_block, self._entries)
        except OSError as error:
            raise CacheError(
                f"cannot read {path}: {error.strerror or error}",
                hint="featcache cache verify checks the file; remove it if it is damaged, and extract again",
            ) from error
        if structure != seal.structure:
            raise CorruptCache(f"{path} is damaged outside its columns", hint=HINT)
        self._verified: set[str] = set()
        self.description = read_description(self.column("meta"), str(path))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(self._entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every column but the description."""
        return {name: entry.shape for name, entry in self._entries.items() if name != "meta"}

    def column(self, name: str) -> np.ndarray:
        """A column as a read-only memory map, after its checksums were checked.

        Raises:
            CorruptCache: names the column, the chunk and its rows.
            KeyError: no such column.
        """
        entry = self._entries[name]
        mapped = self._map(entry.offset, DTYPES[entry.dtype], entry.shape)
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

    def _map(self, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        if not math.prod(shape):
            return np.empty(shape, dtype)
        try:
            return np.memmap(self._file, dtype, mode="r", offset=offset, shape=shape)
        except (OSError, ValueError) as error:  # ValueError: the file became shorter since it was opened
            raise CorruptCache(f"{self.path} cannot be mapped: {error}", hint=HINT) from error

    def _check(self, name: str, entry: ColumnEntry, mapped: np.ndarray) -> None:
        """Compare the checksums, through the very map that is handed out: its pages are loaded once."""
        expected = self._map(entry.checksums, "|u1", (chunk_count(entry.bytes), 16)).tobytes()
        for number in self._first_damaged(entry, mapped, expected):
            if number is not None:
                where = f"chunk {number} of {name} ({entry.rows_of_chunk(number)})"
                raise CorruptCache(f"{self.path}: {where} is damaged", hint=HINT)

    def _first_damaged(self, entry: ColumnEntry, mapped: np.ndarray, expected: bytes) -> Iterable[int | None]:
        """The first damaged chunk, or None, of each of some parts of a column, in order."""
        content = mapped.reshape(-1).view(np.uint8).data

        def first_damaged(numbers: range) -> int | None:
            return next((number for number in numbers if not intact(content, expected, number)), None)

        return _in_threads(first_damaged, chunk_count(entry.bytes))


def read_description(content: np.ndarray, where: str) -> FileDescription:
    """The description in the column `meta` of the file `where`.

    Raises:
        CorruptCache: no JSON, or a field of another type; names the field.
    """
    try:
        return FileDescription.from_json(read_json(content.tobytes()))
    except ValueError as error:
        raise CorruptCache(f"{where} does not hold what its description says: {error}", hint=HINT) from error


def _in_threads(search: Callable[[range], int | None], count: int) -> Iterable[int | None]:
    """`search` of 0 to count - 1, a range for each processor; xxhash lets other threads run."""
    workers = min(8, os.cpu_count() or 1) if count >= 16 else 1
    borders = [count * number // workers for number in range(workers + 1)]
    ranges = [range(*pair) for pair in itertools.pairwise(borders)]
    if workers == 1:
        return map(search, ranges)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(search, ranges))
