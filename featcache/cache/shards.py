"""A cache file of many sealed shards with one sealed manifest, read as one file.

Beside the manifest `train-0123456789ab.h5` are `train-0123456789ab.shard-00000.h5` and so on. All are
ordinary sealed files. The manifest has no rows: its description lists the shards in order, each with the
checksum of its seal, so that no other file is taken for one of them.
"""

from __future__ import annotations

import glob
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.description import FileDescription, ShardEntry
from featcache.cache.seal import CHUNK, DTYPES, HINT, ColumnEntry, chunk_count, intact
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column
from featcache.errors import CacheError, CorruptCache, UsageError
from featcache.fingerprint import CacheDocument
from featcache.system.sharded_array import ShardedColumn, as_array
from featcache.system.units import parse_size

OPEN = 256  # shards whose files are kept open
LEAST_SHARD = 20_000  # bytes; a file without rows has nearly as many

_NAME = re.compile(r"(?P<stem>.+)\.shard-(?P<number>[0-9]{5,})(?P<other>b?)\.h5")

Columns = Callable[[slice], list[Column]]  # the columns of some rows
FetchShard = Callable[..., bool]  # see `LocalFiles.fetch_shard`


def shard_entries(description: FileDescription, path: Path) -> tuple[ShardEntry, ...]:
    """The shards of the cache file `path` of this description; none if it is no manifest.

    Raises:
        ValueError: a name is not one of a shard of `path`, or is there twice.
    """
    entries = description.shards or ()
    for entry in entries:
        if "/" in entry.name or owner_of(path.with_name(entry.name)) != path:
            raise ValueError(f"{entry.name!r} is not the name of a shard")
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("a shard is listed twice")
    return entries


def parse_shard_size(text: str) -> int:
    """The setting `shard_size` in bytes.

    Raises:
        UsageError: `text` is not a size, or the size is below 20 kB.
    """
    size = parse_size(text, "--shard-size")
    if size < LEAST_SHARD:
        raise UsageError(f"--shard-size {text}: at least 20kB", hint="4GB is a good size")
    return size


def owner_of(path: Path) -> Path | None:
    """The cache file that `path` is a shard of, by its name; None if it is not one."""
    named = _NAME.fullmatch(path.name)
    return path.with_name(named["stem"] + ".h5") if named else None


def shard_path(path: Path, number: int, used: Collection[str] = ()) -> Path:
    """Where a new shard of the cache file `path` goes.

    Args:
        used: names of shards that are in use, all made by one call; new shards get other names.
    """
    other = "b" if any(_NAME.fullmatch(name) and not name.endswith("b.h5") for name in used) else ""
    return path.with_name(f"{path.stem}.shard-{number:05d}{other}.h5")


def shard_paths(path: Path) -> list[Path]:
    """The files beside the cache file `path` that have names of its shards, in use or not."""
    found = path.parent.glob(f"{glob.escape(path.stem)}.shard-*.h5")
    return sorted(each for each in found if owner_of(each) == path)


def shards_in_use(path: Path) -> set[Path] | None:
    """The shards that the cache file `path` consists of; None if it cannot be read."""
    try:
        return {path.with_name(entry.name) for entry in shard_entries(SealedFile(path).description, path)}
    except (CacheError, ValueError):
        return None


def cache_bytes(path: Path) -> int:
    """Bytes of a cache file on this disk with its shards; 0 if there is none."""
    found = 0
    for each in (path, *shard_paths(path)):
        with suppress(FileNotFoundError):  # another process may remove it
            found += each.stat().st_size
    return found


# -- reading --------------------------------------------------------------------------------------


class Shard(SealedFile):
    """A shard, checked with plain reads, because a memory map would count as memory of this process."""

    @property
    def state(self) -> tuple[int, ...]:
        """Changes when a process writes to the file."""
        stat = os.fstat(self._file.fileno())
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def trust(self, name: str) -> None:
        """Skip the checksums of a column that was checked when the file had the same `state`."""
        self._verified.add(name)

    def _first_damaged(self, entry: ColumnEntry, mapped: np.ndarray, expected: bytes) -> Iterable[int | None]:
        self._file.seek(entry.offset)
        for number in range(chunk_count(entry.bytes)):
            content = self._file.read(min(CHUNK, entry.bytes - number * CHUNK))
            if not intact(memoryview(content), expected[16 * number : 16 * number + 16], 0):
                yield number


class ShardedFile(SealedFile):
    """The shards of a manifest, read as one sealed file.

    A column is a `ShardedColumn`: a shard is opened, and its column checked, when one of its rows is asked
    for. Up to `OPEN` shards stay open, so that open features can be read after the cache was replaced or
    removed; an error names a missing shard that is not open.

    Args:
        manifest: an open file with `shards` in its description.
        fetch_shard: fetches a shard from a store, see `LocalFiles.fetch_shard`.

    Raises:
        CorruptCache: the manifest makes no sense.
    """

    def __init__(self, manifest: SealedFile, fetch_shard: FetchShard) -> None:
        self.path, self.description, self.manifest = manifest.path, manifest.description, manifest
        self._fetch_shard = fetch_shard
        try:
            self.shards = shard_entries(self.description, self.path)
            self.ends = np.cumsum([0, *(each.rows for each in self.shards)]).tolist()
            self._types = self.description.columns or {}
            if self.ends[-1] != CacheDocument.from_json(self.description.document).rows.count:
                raise ValueError("its shards are not the rows of its description")
        except ValueError as error:
            what = f"{self.path}: the list of shards makes no sense: {error}"
            raise CorruptCache(what, hint=HINT) from error
        self.nbytes = manifest.nbytes + sum(each.bytes for each in self.shards)
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._good: set[tuple[Any, ...]] = set()  # shards that were checked, with their state then
        self._columns: dict[str, ShardedColumn] = {}
        self._lock = threading.RLock()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._types, "meta")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.ends[-1], *kind.shape) for name, kind in self._types.items()}

    def column(self, name: str) -> np.ndarray:
        """A column as a `ShardedColumn`, which is read like an array; `meta` is that of the manifest.

        Raises:
            KeyError: no such column.
            CorruptCache: now or when rows are read: a shard is damaged, missing or of another cache; named.
        """
        if name == "meta":
            return self.manifest.column(name)
        if name not in self._columns:
            kind = self._types[name]
            read = lambda number: self._rows_of(number, name)  # noqa: E731
            self._columns[name] = ShardedColumn(read, self.ends, DTYPES[kind.dtype], kind.shape)
        return as_array(self._columns[name])

    def total(self, name: str) -> int:
        totals = [each.total(name) for each in self.shards]
        return sum(
            int(self._rows_of(number, name).sum(dtype=np.int64)) if total is None else total
            for number, total in enumerate(totals)
        )

    def verify(self) -> int:
        return sum(check() for _, check in self.checks())

    def checks(self) -> Iterator[tuple[str, Callable[[], int]]]:
        yield "meta", self.manifest.verify
        for number, entry in enumerate(self.shards):
            yield entry.name, lambda number=number: self._opened(number, again=True).verify()  # type: ignore[misc]

    def _rows_of(self, number: int, name: str) -> np.ndarray:
        """A column of a shard as a memory map, checked when it is mapped for the first time."""
        with self._lock:
            shard = self._opened(number)
            state = (number, name, *shard.state)
            if state in self._good:  # opened again since, and no process wrote to it
                shard.trust(name)
            try:
                rows = shard.column(name)
            except CorruptCache:  # if a store has the shard, it is fetched again
                if not self._fetch_shard(shard.path, again=True):
                    raise
                shard = self._opened(number, again=True)
                rows, state = shard.column(name), (number, name, *shard.state)
            self._good.add(state)
        return rows

    def _opened(self, number: int, *, again: bool = False) -> Shard:
        """The shard `number`, checked against the manifest.

        Args:
            again: open the file that has its name now, even if a file is open.
        """
        with self._lock:
            if number not in self._open or again:
                self._open[number] = self._checked_or_fetched(self.shards[number])
                if len(self._open) > OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def _checked_or_fetched(self, entry: ShardEntry) -> Shard:
        path = self.path.with_name(entry.name)
        self._fetch_shard(path)
        try:
            return self._checked(entry, path)
        except CacheError:  # if a store has the shard, it is fetched again
            if not self._fetch_shard(path, again=True):
                raise
            return self._checked(entry, path)

    def _checked(self, entry: ShardEntry, path: Path) -> Shard:
        if not path.is_file():
            raise CorruptCache(f"{self.path}: its shard {path.name} is missing", hint=HINT)
        shard = Shard(path)
        found = {name: (one.dtype, one.shape) for name, one in shard._entries.items() if name != "meta"}
        wanted = {name: (kind.dtype, (entry.rows, *kind.shape)) for name, kind in self._types.items()}
        if (shard.digest, shard.nbytes) != (entry.seal, entry.bytes) or found != wanted:
            raise CorruptCache(f"{path} is not the shard that {self.path.name} was sealed with", hint=HINT)
        return shard
