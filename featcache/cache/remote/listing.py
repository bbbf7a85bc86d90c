"""What this machine knows of the cache files of a store: a listing entry for each.

Only the first bytes and the description of a file are read for its entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.sealed_file import (
    DTYPES,
    LONGEST_SEAL,
    checked_entries,
    chunk_count,
    intact,
    read_seal,
)  # fmt: skip
from featcache.errors import CacheError, CorruptCache
from featcache.system.documents import parse_document, plain_document
from featcache.system.durable import write_file
from featcache.system.stores import Remote, shown

HEAD = 1 << 16  # bytes that hold the seal of nearly every file
HINT = "remove it with featcache cache rm, then run featcache extract again"
_SHARD = re.compile(r"\.shard-[0-9]{5,}b?\.h5$")
_NAME = re.compile(r"[\w.\-]+/[\w.\-]+/[\w.\-]+-[0-9a-f]{12}\.(h5|json)")


@dataclass(frozen=True)
class ListingEntry:
    """What a store had under the name of a cache file at the last look.

    Attributes:
        stamp: changes when the file does, see `stores.stamp`.
        modified: seconds since the epoch.
        meta, columns, digest: of a good file: its description, and the columns and checksum of its seal.
        damage: of another file: what is wrong, a sentence.
        corrupt: whether the damaged file is a cache file.
        record: the stamp of its record.
    """

    stamp: str
    bytes: int
    modified: float
    meta: dict[str, Any] | None = None
    columns: dict[str, dict[str, Any]] | None = None
    digest: str | None = None
    damage: str | None = None
    corrupt: bool = False
    record: str | None = None

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The shards of the file, as its manifest has them."""
        return list((self.meta or {}).get("shards", []))

    @property
    def fingerprint(self) -> str:
        """Of a good file; else empty."""
        return str((self.meta or {}).get("fingerprint", ""))


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
        """Where the entry of the cache file `path` is."""
        return self.entries / path.relative_to(self.folder).with_suffix(".json")

    def paths(self) -> list[Path]:
        """Where the files that have an entry are on this machine, fetched or not."""
        found = self.entries.glob("*/*/*.json")
        return [self.folder / path.relative_to(self.entries).with_suffix(".h5") for path in found]

    def read(self, path: Path) -> ListingEntry | None:
        """The entry of the cache file `path`; None where there is none that can be read."""
        try:
            content = json.loads(self.entry_path(path).read_bytes())
            entry = parse_document(ListingEntry, content, str(path), CacheError)
        except (OSError, ValueError, CacheError):
            return None
        described = None not in (entry.meta, entry.columns, entry.digest)
        return entry if described or entry.damage is not None else None

    def write(self, path: Path, entry: ListingEntry) -> None:
        write_file(self.entry_path(path), json.dumps(plain_document(entry)).encode())

    def has(self, path: Path) -> bool:
        """Whether the store had the cache file or shard `path` at the last look."""
        owner = cache_of(path)
        entry = self.read(owner)
        return entry is not None and (path == owner or path.name in shard_names(entry, owner))


def is_ours(name: str) -> bool:
    """Whether `name` is one that featcache gives; other files of the store are left alone."""
    return _NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def cache_of(path: Path) -> Path:
    """The cache file that `path` is, or is a shard of."""
    return path.with_name(_SHARD.sub(".h5", path.name))


def shard_names(entry: ListingEntry | None, path: Path) -> list[str]:
    """Names of the shards that the cache file `path` consists of in the store."""
    names = [str(each["name"]) for each in entry.shards] if entry else []
    return [name for name in names if _SHARD.search(name) and _SHARD.sub(".h5", name) == path.name]


def description(remote: Remote, size: int) -> dict[str, Any]:
    """`meta`, `columns` and `digest` of a cache file; only its first bytes and its description are read."""
    where = shown(remote.url)
    seal = _seal(remote, size)
    columns = checked_entries(seal, size, where)
    try:
        meta = json.loads(read_column(remote, "meta", columns["meta"]).tobytes())
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise CorruptCache(f"{where}: /meta is no JSON object", hint=HINT)
    return {"meta": meta, "columns": columns, "digest": seal["digest"]}


def _seal(remote: Remote, size: int) -> dict[str, Any]:
    where = shown(remote.url)
    try:
        return read_seal(BytesIO(remote.read(0, min(HEAD, size))), where)
    except CorruptCache:
        if size <= HEAD:
            raise
        return read_seal(BytesIO(remote.read(0, min(LONGEST_SEAL, size))), where)


def seal_digest(remote: Remote) -> str | None:
    """The checksum of the seal of a file of a store; None where there is none, or it is no sealed file.

    Raises:
        CacheError: the store cannot be asked.
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
    return str(seal["digest"]) if seal["length"] == info["size"] else None


def is_out_of_reach(error: CacheError) -> bool:
    """Whether `error` is one of the store, which tells nothing of the file itself."""
    return error.__cause__ is not None and not isinstance(error, CorruptCache)


def read_column(remote: Remote, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    """One column of a file of a store; only its bytes are read, and its checksums are checked."""
    sums_at, size = entry["checksums"], entry["bytes"]
    content = remote.read(entry["offset"], entry["offset"] + size) if size else b""
    sums = remote.read(sums_at, sums_at + 16 * chunk_count(size)) if size else b""
    chunks = range(chunk_count(size))
    if len(content) != size or not all(intact(memoryview(content), sums, number) for number in chunks):
        raise CorruptCache(f"{shown(remote.url)}: {name} is damaged", hint=HINT)
    return np.frombuffer(content, DTYPES[entry["dtype"]]).reshape(entry["shape"])
