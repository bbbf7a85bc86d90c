"""Write the rows of a cache as one sealed file, or as shards with a manifest, which is published last."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featcache.cache.description import SHARD, ColumnType, FileDescription, ShardEntry
from featcache.cache.sealed_writer import Column, UnsealedFile, sealed_size, write_sealed, write_unsealed
from featcache.cache.shards import Columns, Shard, shard_path, shard_paths, shards_in_use
from featcache.errors import CacheError, UsageError
from featcache.system import durable as files
from featcache.system.durable import explained, remove_temporaries


def write_cache(
    path: Path,
    description: FileDescription,
    rows: int,
    columns: Columns,
    shard_size: int,
    *,
    replace: bool = False,
    taken: Collection[str] = (),
) -> bool:
    """Write a cache as one sealed file, or as shards of at most `shard_size` bytes if it is larger.

    The cache exists completely or not at all. A call after an interruption continues with the next shard. The
    caller holds the lock of `path`.

    Args:
        columns: the columns of some of the rows.
        replace: replace a cache of that name in one step.
        taken: names of the shards that a store has of the cache; new shards get other names.

    Returns:
        False if a cache of that name exists and `replace` is not set; it is not changed.

    Raises:
        UsageError: not even one row fits into `shard_size`.
        CacheError: the disk is full, or the file system refuses; finished shards are kept.
    """
    whole, parts = columns(slice(0, rows)), _shard_rows(description, rows, columns, shard_size)
    if not parts:
        done = write_sealed(path, description.to_json(), whole, replace=replace)
    else:
        used = {*taken, *(each.name for each in shards_in_use(path) or ())}
        entries = [
            _write_shard(shard_path(path, number, used), _of_shard(description, number, part), columns(part))
            for number, part in enumerate(parts)
        ]
        done = write_sealed(path, _manifest(description, whole, entries).to_json(), [], replace=replace)
    _remove_unused(path)
    return done


@dataclass(frozen=True)
class UnsealedCache:
    """All rows of a cache in temporary files, until it is known what they are called.

    Attributes:
        columns: of all rows; their chunks are used up.
        parts: the rows of each shard with their file; none where `whole` has all rows.
    """

    columns: list[Column]
    whole: UnsealedFile | None
    parts: list[tuple[slice, UnsealedFile]]

    def publish(self, path: Path, description: FileDescription) -> bool:
        """Seal the files and publish them under `path`, in the same folder; the caller holds its lock.

        Returns:
            False if a cache of that name exists; it is not changed.

        Raises:
            CacheError: the disk is full, or the file system refuses; no cache of that name is there.
        """
        if self.whole is not None:
            return self.whole.publish(path, description.to_json())
        entries = []
        for number, (rows, file) in enumerate(self.parts):
            shard, own = shard_path(path, number), _of_shard(description, number, rows)
            file.publish(shard, own.to_json(), replace=shard.exists())
            entries.append(_entry_of(shard, own))
        done = write_sealed(path, _manifest(description, self.columns, entries).to_json(), [])
        _remove_unused(path)
        return done


@contextmanager
def unsealed_cache(
    beside: Path, description: FileDescription, rows: int, columns: Columns, shard_size: int
) -> Iterator[UnsealedCache]:
    """Write all rows of a cache whose name depends on them; what is not published in time is removed.

    Args:
        beside: gives the temporary files their folder and their names; the caller holds its lock.
        description: what is not known of it yet is as long as it will be.
        columns: the columns of some of the rows; their rows are asked for once, in order.

    Raises:
        UsageError, CacheError: see `write_cache`; no file is left.
    """
    all_columns, parts = columns(slice(0, rows)), _shard_rows(description, rows, columns, shard_size)
    written: list[UnsealedFile] = []
    try:
        if not parts:
            written.append(write_unsealed(beside, description.to_json(), all_columns))
            yield UnsealedCache(all_columns, written[0], [])
        else:
            for number, part in enumerate(parts):
                own = _of_shard(description, number, part).to_json()
                written.append(write_unsealed(beside, own, columns(part)))
            yield UnsealedCache(all_columns, None, [*zip(parts, written, strict=True)])
    finally:
        with explained(beside):
            for file in written:
                files.disk.unlink(file.temporary)  # a published one has another name


def _shard_rows(description: FileDescription, rows: int, columns: Columns, shard_size: int) -> list[slice]:
    """Rows of each shard: as few shards as possible, all about as long; none where one file is enough."""

    def size(count: int) -> int:
        longest = _of_shard(description, rows, slice(rows, 2 * rows))
        return sealed_size(longest.to_json(), columns(slice(0, count)))

    if sealed_size(description.to_json(), columns(slice(0, rows))) <= shard_size:
        return []
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


def _of_shard(whole: FileDescription, number: int, rows: slice) -> FileDescription:
    """The description of the shard with these rows."""
    return FileDescription(
        format=SHARD,
        fingerprint=whole.fingerprint,
        split=whole.split,
        shard=number,
        first_row=rows.start,
        rows=rows.stop - rows.start,
    )


def _write_shard(path: Path, description: FileDescription, columns: list[Column]) -> ShardEntry:
    """Write a shard, unless an earlier attempt finished the same shard and no byte of it has changed."""
    if not _is_finished(path, description):
        remove_temporaries(path)
        write_sealed(path, description.to_json(), columns, replace=path.exists())
    return _entry_of(path, description)


def _is_finished(path: Path, description: FileDescription) -> bool:
    try:
        shard = Shard(path)
        if shard.description == description:
            shard.verify()
            return True
    except CacheError:
        pass
    return False


def _entry_of(path: Path, description: FileDescription) -> ShardEntry:
    """What the manifest says of the shard that was published under `path`."""
    shard = Shard(path)
    if shard.description != description:
        raise CacheError(f"{path} was replaced while it was written", hint="run the same command again")
    truncated, n_tokens = (
        shard.total(name) if name in shard.names else None for name in ("truncated", "n_tokens")
    )
    rows = description.rows or 0
    return ShardEntry(path.name, rows, shard.nbytes, shard.digest, truncated=truncated, n_tokens=n_tokens)


def _manifest(
    description: FileDescription, columns: list[Column], shards: list[ShardEntry]
) -> FileDescription:
    types = {column.name: ColumnType(column.dtype, column.shape[1:]) for column in columns}
    return dataclasses.replace(description, columns=types, shards=tuple(shards))


def _remove_unused(path: Path) -> None:
    """Remove the shards that are not part of the finished cache at `path`."""
    used = shards_in_use(path)
    if used is None:
        return
    with explained(path):
        for shard in shard_paths(path):
            remove_temporaries(shard)
            if shard not in used:
                files.disk.unlink(shard)
