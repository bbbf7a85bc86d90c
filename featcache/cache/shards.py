"""A cache of many sealed shards with one sealed manifest, written shard by shard and read as one file.

Beside the manifest `train-0123456789ab.h5` lie `train-0123456789ab.shard-00000.h5` and so on. All are
ordinary sealed files. The manifest has no rows: its description says which shards there are, in order, with
the checksum of each one's seal, so that no other shard is ever taken for one of them.
"""

from __future__ import annotations

import glob
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.sealed_file import (
    CHUNK,
    DTYPES,
    Column,
    SealedFile,
    chunk_count,
    intact,
    sealed_size,
    write_sealed,
)
from featcache.errors import CacheError, CorruptCache, UsageError
from featcache.system import durable as files
from featcache.system.durable import explained, remove_temporaries
from featcache.system.sharded_array import ShardedColumn, as_array
from featcache.system.units import parse_size

SHARD = "featcache shard"  # the `format` of a shard's description
OPEN = 256  # shards whose files are kept open
LEAST_SHARD = 20_000  # bytes; a file without rows has nearly as many
SUMMED = ("truncated", "n_tokens")  # columns whose sums the manifest has

_NAME = re.compile(r"(?P<stem>.+)\.shard-(?P<number>[0-9]{5,})(?P<other>b?)\.h5")
_HINT = "remove it with featcache cache rm, then run featcache extract again"

Columns = Callable[[slice], list[Column]]
Fetch = Callable[..., bool]  # see `LocalFiles.fetch_shard`


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
    """The cache file that `path` is a shard of, by its name; None where it is none."""
    named = _NAME.fullmatch(path.name)
    return path.with_name(named["stem"] + ".h5") if named else None


def shard_paths(path: Path) -> list[Path]:
    """What lies beside the cache file `path` under a name of its shards, in use or not."""
    found = path.parent.glob(f"{glob.escape(path.stem)}.shard-*.h5")
    return sorted(each for each in found if owner_of(each) == path)


def shards_in_use(path: Path) -> set[Path] | None:
    """The shards that the cache file `path` consists of; None where it cannot be read."""
    try:
        meta = SealedFile(path).meta
        return {path.with_name(str(each["name"])) for each in meta.get("shards", [])}
    except (CacheError, TypeError, KeyError, ValueError):
        return None


def cache_bytes(path: Path) -> int:
    """Bytes of a cache file on this disk with its shards; 0 where there is none."""
    total = 0
    for each in (path, *shard_paths(path)):
        try:
            total += each.stat().st_size
        except OSError:
            continue
    return total


# -- writing --------------------------------------------------------------------------------------


def write_cache(
    path: Path,
    meta: Mapping[str, Any],
    rows: int,
    columns: Columns,
    shard_size: int,
    *,
    replace: bool = False,
    taken: Collection[str] = (),
) -> bool:
    """Write a cache as one sealed file, or as shards of at most `shard_size` bytes where it is larger.

    Each shard is durable as soon as it is written. The manifest is published last, so that the cache is
    there whole or not at all; who calls this again after it was interrupted goes on with the next shard.
    Only for who holds the lock of `path`.

    Args:
        meta: as for `write_sealed`.
        columns: the columns of some of the rows.
        replace: take the place of a cache of that name, in one step, instead of leaving it.
        taken: names of shards that a cache of that name has elsewhere; none of them is given again.

    Returns:
        False when a cache of that name was there already; it is left as it is.

    Raises:
        UsageError: not even one row fits into `shard_size`.
        CacheError: disk full or any other refusal of the file system; finished shards are kept.
    """
    whole = columns(slice(0, rows))
    if sealed_size(meta, whole) <= shard_size:
        done = write_sealed(path, meta, whole, replace=replace)
    else:
        used = (shards_in_use(path) or set()) | {path.with_name(name) for name in taken}
        other = "b" if any(owner_of(each) and not each.stem.endswith("b") for each in used) else ""
        entries = []
        for number, part in enumerate(_parts(meta, rows, columns, shard_size)):
            shard = path.with_name(f"{path.stem}.shard-{number:05d}{other}.h5")
            entries.append(_write_shard(shard, _shard_meta(meta, number, part), columns(part)))
        done = write_sealed(path, _manifest(meta, whole, entries), [], replace=replace)
    _remove_unused(path)
    return done


def _parts(meta: Mapping[str, Any], rows: int, columns: Columns, shard_size: int) -> list[slice]:
    """Rows of each shard: as few shards as will do, and all about as long."""

    def size(count: int) -> int:
        longest = _shard_meta(meta, rows, slice(rows, 2 * rows))
        return sealed_size(longest, columns(slice(0, count)))

    least, most = size(1), rows
    if least > shard_size:
        raise UsageError(
            f"--shard-size {shard_size} bytes: a shard with a single row has {least}",
            hint="shards of some GB read best: --shard-size 4GB",
        )
    fits = 1
    while fits < most:  # the size grows with the rows
        middle = (fits + most + 1) // 2
        fits, most = (middle, most) if size(middle) <= shard_size else (fits, middle - 1)
    count = -(-rows // fits)
    return [slice(rows * number // count, rows * (number + 1) // count) for number in range(count)]


def _shard_meta(meta: Mapping[str, Any], number: int, rows: slice) -> dict[str, Any]:
    return {
        "format": SHARD,
        "fingerprint": meta["fingerprint"],
        "split": meta["split"],
        "shard": number,
        "first_row": rows.start,
        "rows": rows.stop - rows.start,
    }


def _write_shard(path: Path, meta: Mapping[str, Any], columns: list[Column]) -> dict[str, Any]:
    """Write a shard unless it is there already; what the manifest says of it."""
    if not _is_whole(path, meta):
        remove_temporaries(path)
        write_sealed(path, meta, columns, replace=path.exists())
    shard = _Shard(path)
    if shard.meta != meta:
        raise CacheError(f"{path} was replaced while it was written", hint="run the same command again")
    sums = {name: shard.total(name) for name in SUMMED if name in shard.names}
    return {"name": path.name, "rows": meta["rows"], "bytes": shard.nbytes, "seal": shard.digest, **sums}


def _is_whole(path: Path, meta: Mapping[str, Any]) -> bool:
    """Whether an earlier attempt finished this very shard, and not a byte of it has changed."""
    if not path.exists():
        return False
    try:
        shard = _Shard(path)
        if shard.meta != meta:
            return False
        shard.verify()
    except CacheError:
        return False
    return True


def _manifest(meta: Mapping[str, Any], columns: list[Column], shards: list[dict[str, Any]]) -> dict[str, Any]:
    about = {column.name: {"dtype": column.dtype, "shape": list(column.shape[1:])} for column in columns}
    return {**meta, "columns": about, "shards": shards}


def _remove_unused(path: Path) -> None:
    """Remove shards that the finished cache at `path` does not consist of: an earlier one's, or litter."""
    used = shards_in_use(path)
    if used is None:
        return
    with explained(path):
        for shard in shard_paths(path):
            remove_temporaries(shard)
            if shard not in used:
                files.disk.unlink(shard)


# -- reading --------------------------------------------------------------------------------------


class _Shard(SealedFile):
    """A shard. It is checked by plain reads: a map would have all of it in this process's memory."""

    @property
    def layout(self) -> dict[str, tuple[str, list[int]]]:
        """Type and shape of each column."""
        entries = {name: (entry["dtype"], entry["shape"]) for name, entry in self._entries.items()}
        return {name: about for name, about in entries.items() if name != "meta"}

    @property
    def state(self) -> tuple[int, ...]:
        """What changes when somebody writes to the file."""
        stat = os.fstat(self._file.fileno())
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def trust(self, name: str) -> None:
        """Take a column to be good: it was checked when the file had the same `state`."""
        self._verified.add(name)

    def _first_damaged(
        self, entry: Mapping[str, Any], mapped: np.ndarray, expected: bytes
    ) -> Iterable[int | None]:
        self._file.seek(entry["offset"])
        left = entry["bytes"]
        for number in range(chunk_count(left)):
            content = self._file.read(min(CHUNK, left - number * CHUNK))
            if not intact(memoryview(content), expected[16 * number : 16 * number + 16], 0):
                yield number


class ShardedFile(SealedFile):
    """The shards of a manifest, read as one sealed file.

    A column is a `ShardedColumn`; a shard is opened, and its column checked, when one of its rows is asked
    for. Shards stay open, up to `OPEN` of them, so that who has features open goes on reading after the cache
    was replaced or removed; of those that are not open it is told which one is missing.

    Args:
        manifest: opened; it has `shards` in its description.
        fetch_shard: has a shard of a store on this machine.

    Raises:
        CorruptCache: a manifest that makes no sense.
    """

    def __init__(self, manifest: SealedFile, fetch_shard: Fetch) -> None:
        self._fetch_shard = fetch_shard
        self.path, self.meta, self.manifest = manifest.path, manifest.meta, manifest
        try:
            self.shards = [_checked_entry(each, self.path) for each in self.meta["shards"]]
            self.ends = np.cumsum([0, *(each["rows"] for each in self.shards)]).tolist()
            self._about = {name: _checked_about(about) for name, about in self.meta["columns"].items()}
            names = [each["name"] for each in self.shards]
            if len(set(names)) != len(names) or self.ends[-1] != self.meta["document"]["rows"]["count"]:
                raise ValueError("its shards are not the rows of its description")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{self.path}: the list of shards makes no sense: {error}"
            raise CorruptCache(what, hint=_HINT) from error
        self.nbytes = manifest.nbytes + sum(each["bytes"] for each in self.shards)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._good: set[tuple[Any, ...]] = set()  # shards that were checked, as they were then
        self._columns: dict[str, ShardedColumn] = {}
        self._lock = threading.RLock()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._about, "meta")

    def column(self, name: str) -> np.ndarray:
        """A column: what stands in for an array, see `ShardedColumn`; `meta` is that of the manifest.

        Raises:
            KeyError: no such column.
            CorruptCache: now or when rows are read: a shard that is damaged, missing or another's, by name.
        """
        if name == "meta":
            return self.manifest.column(name)
        if name not in self._columns:
            dtype, shape = self._about[name]
            read = lambda number: self._rows_of(number, name)  # noqa: E731
            self._columns[name] = ShardedColumn(read, self.ends, DTYPES[dtype], shape)
        return as_array(self._columns[name])

    def total(self, name: str) -> int:
        if all(name in each for each in self.shards):
            return int(sum(each[name] for each in self.shards))
        return sum(int(self._rows_of(number, name).sum(dtype=np.int64)) for number in range(len(self.shards)))

    def verify(self) -> int:
        return sum(check() for _, check in self.checks())

    def checks(self) -> Iterator[tuple[str, Callable[[], int]]]:
        yield "meta", self.manifest.verify
        for number, about in enumerate(self.shards):
            yield about["name"], lambda number=number: self._opened(number, anew=True).verify()  # type: ignore[misc]

    def _rows_of(self, number: int, name: str) -> np.ndarray:
        """A column of a shard as a memory map, checked when it is mapped for the first time."""
        with self._lock:
            shard = self._opened(number)
            state = (number, name, *shard.state)
            if state in self._good:  # it was closed and opened since, and nobody wrote to it
                shard.trust(name)
            try:
                rows = shard.column(name)
            except CorruptCache:  # a copy of what a store has is fetched again
                if not self._fetch_shard(shard.path, anew=True):
                    raise
                shard = self._opened(number, anew=True)
                rows, state = shard.column(name), (number, name, *shard.state)
            self._good.add(state)
        return rows

    def _opened(self, number: int, *, anew: bool = False) -> _Shard:
        """A shard, proved to be the one that the manifest means.

        Args:
            anew: open the file that bears its name now, even where it is open.
        """
        with self._lock:
            if number not in self._open or anew:
                self._open[number] = self._proved(self.shards[number])
                if len(self._open) > OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def _proved(self, about: Mapping[str, Any]) -> _Shard:
        path = self.path.with_name(about["name"])
        self._fetch_shard(path)
        try:
            return self._checked(about, path)
        except CacheError:  # a copy of what a store has is fetched again
            if not self._fetch_shard(path, anew=True):
                raise
            return self._checked(about, path)

    def _checked(self, about: Mapping[str, Any], path: Path) -> _Shard:
        if not path.is_file():
            raise CorruptCache(f"{self.path}: its shard {path.name} is missing", hint=_HINT)
        shard = _Shard(path)
        wanted = {name: (dtype, [about["rows"], *shape]) for name, (dtype, shape) in self._about.items()}
        if shard.digest != about["seal"] or shard.nbytes != about["bytes"] or shard.layout != wanted:
            raise CorruptCache(f"{path} is not the shard that {self.path.name} was sealed with", hint=_HINT)
        return shard


def _checked_entry(about: Any, path: Path) -> dict[str, Any]:
    """One shard of the manifest at `path`, whose name must be that of a shard of its own."""
    numbers = [about["rows"], about["bytes"], *(about[name] + 1 for name in SUMMED if name in about)]
    if any(type(number) is not int or number < 1 for number in numbers):
        raise ValueError("a number that is none")
    name, seal = about["name"], about["seal"]
    if not isinstance(seal, str) or not _NAME.fullmatch(name) or owner_of(path.with_name(name)) != path:
        raise ValueError(f"{name!r} is no name of a shard")
    return dict(about)


def _checked_about(about: Any) -> tuple[str, tuple[int, ...]]:
    """Type and shape of the rows of a column."""
    if about["dtype"] not in DTYPES or len(about["shape"]) > 1:
        raise ValueError("a column of an unknown kind")
    if any(type(number) is not int or not 0 <= number < 1 << 40 for number in about["shape"]):
        raise ValueError("a shape that is none")
    return about["dtype"], tuple(about["shape"])
