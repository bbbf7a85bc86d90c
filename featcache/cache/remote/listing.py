"""What this machine knows about the cache files of a store: a listing entry for each.

For an entry only the first bytes and the description of the file are read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np

from featcache.cache.description import FileDescription, ShardEntry
from featcache.cache.seal import (
    DTYPES,
    HINT,
    LONGEST_SEAL,
    ColumnEntry,
    Seal,
    are_apart,
    chunk_count,
    intact,
    read_seal,
)
from featcache.cache.sealed_file import read_description
from featcache.cache.shards import owner_of, shard_entries
from featcache.errors import CacheError, CorruptCache
from featcache.plain_file import read_plain
from featcache.system.documents import plain_document, read_document
from featcache.system.durable import write_file
from featcache.system.stores import Remote, shown

HEAD = 1 << 16  # bytes that hold the seal of nearly every file
_NAME = re.compile(r"[\w.\-]+/[\w.\-]+/[\w.\-]+-[0-9a-f]{12}\.(h5|json)")


@dataclass(frozen=True)
class ListingEntry:
    """What a store had under the name of a cache file when it was last listed.

    Attributes:
        stamp: changes when the file does, see `stores.stamp`.
        modified: seconds since the epoch.
        meta, columns, digest: for a good file its description, and the columns and checksum of its seal.
        damage: for another file a sentence that says what is wrong.
        corrupt: whether that file is a damaged cache file, and not something else.
        record: the stamp of its record.
    """

    stamp: str
    bytes: int
    modified: float
    meta: FileDescription | None = None
    columns: dict[str, ColumnEntry] | None = None
    digest: str | None = None
    damage: str | None = None
    corrupt: bool = False
    record: str | None = None

    def shards(self, path: Path) -> tuple[ShardEntry, ...]:
        """The shards of the cache file `path`; none if its manifest makes no sense."""
        try:
            return shard_entries(self.meta or FileDescription(), path)
        except ValueError:
            return ()

    @property
    def fingerprint(self) -> str:
        """The fingerprint of a good file; else empty."""
        return self.meta.fingerprint if self.meta else ""


class Listing:
    """The entries of one cache of a store, as files beside its mirror.

    `ROOT/cache/KEY/dataset/model/NAME.h5` has its entry in `ROOT/cards/KEY/dataset/model/NAME.json`.

    Args:
        folder: the mirror's folder, `ROOT/cache/KEY`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = folder.parents[1] / "cards" / folder.name

    def entry_path(self, path: Path) -> Path:
        """The path of the entry of the cache file `path`."""
        return self.entries / path.relative_to(self.folder).with_suffix(".json")

    def paths(self) -> list[Path]:
        """The local paths of the files that have an entry, fetched or not."""
        found = self.entries.glob("*/*/*.json")
        return [self.folder / path.relative_to(self.entries).with_suffix(".h5") for path in found]

    def read(self, path: Path) -> ListingEntry | None:
        """The entry of the cache file `path`; None if there is none that can be read."""
        try:
            entry = read_document(ListingEntry, read_plain(self.entry_path(path)), str(path), CacheError)
            columns = entry.columns or {}
            whole = "meta" in columns and are_apart(0, columns, entry.bytes)
        except (OSError, ValueError, CacheError):
            return None
        described = None not in (entry.meta, entry.columns, entry.digest)
        return entry if (whole and described) or entry.damage is not None else None

    def write(self, path: Path, entry: ListingEntry) -> None:
        write_file(self.entry_path(path), json.dumps(plain_document(entry)).encode())

    def has(self, path: Path) -> bool:
        """Whether the store had the cache file or shard `path` when it was last listed."""
        owner = cache_of(path)
        entry = self.read(owner)
        return entry is not None and (path == owner or path.name in shard_names(entry, owner))


def is_ours(name: str) -> bool:
    """Whether featcache gives names like `name`; other files of the store are ignored."""
    return _NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def cache_of(path: Path) -> Path:
    """The cache file that `path` is, or is a shard of."""
    return owner_of(path) or path


def shard_names(entry: ListingEntry | None, path: Path) -> list[str]:
    """Names of the shards of the cache file `path` in the store."""
    return [shard.name for shard in entry.shards(path)] if entry else []


def described(entry: ListingEntry, remote: Remote) -> ListingEntry:
    """The entry with what the file says; only its first bytes and its description are read."""
    where = shown(remote.url)
    seal = _seal(remote, entry.bytes)
    seal.check(entry.bytes, where)
    meta = read_description(read_column(remote, "meta", seal.columns["meta"]), where)
    return replace(entry, meta=meta, columns=seal.columns, digest=seal.digest)


def _seal(remote: Remote, size: int) -> Seal:
    where = shown(remote.url)
    try:
        return read_seal(BytesIO(remote.read(0, min(HEAD, size))), where)
    except CorruptCache:
        if size <= HEAD:
            raise
        return read_seal(BytesIO(remote.read(0, min(LONGEST_SEAL, size))), where)


def seal_digest(remote: Remote) -> str | None:
    """The checksum of the seal of a file of a store; None if there is none, or it is not a sealed file.

    Raises:
        CacheError: the store cannot be reached.
    """
    info = remote.info()
    if info is None:
        return None
    try:
        seal = _seal(remote, int(info["size"]))
    except CacheError as error:
        if is_out_of_reach(error):
            raise
        return None
    return seal.digest if seal.length == info["size"] else None


def is_out_of_reach(error: CacheError) -> bool:
    """Whether the store caused `error`, so that nothing is known about the file itself."""
    return error.__cause__ is not None and not isinstance(error, CorruptCache)


def read_column(remote: Remote, name: str, entry: ColumnEntry) -> np.ndarray:
    """One column of a file of a store, checked; only its bytes and checksums are read."""
    size, sums_end = entry.bytes, entry.checksums + 16 * chunk_count(entry.bytes)
    content = remote.read(entry.offset, entry.offset + size) if size else b""
    sums = remote.read(entry.checksums, sums_end) if size else b""
    chunks = range(chunk_count(size))
    if len(content) != size or not all(intact(memoryview(content), sums, number) for number in chunks):
        raise CorruptCache(f"{shown(remote.url)}: {name} is damaged", hint=HINT)
    return np.frombuffer(content, DTYPES[entry.dtype]).reshape(entry.shape)
