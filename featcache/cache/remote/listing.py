"""What a store has, as it is noted on this machine: a card for each cache file, and how one is filled in.

Only a file's first bytes and its description are read for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import CacheError, CorruptCache
from featcache.system.stores import Remote, shown
from featcache.cache.sealed_file import DTYPES, LONGEST_SEAL, checked_entries, chunk_count, intact, read_seal

HEAD = 1 << 16  # bytes that hold the seal of nearly every file
HINT = "remove it with featcache cache rm, then run featcache extract again"
_SHARD = re.compile(r"\.shard-[0-9]{5,}b?\.h5$")
_NAME = re.compile(r"[\w.\-]+/[\w.\-]+/[\w.\-]+-[0-9a-f]{12}\.(h5|json)")


def card_path(path: Path) -> Path:
    """What the store has under the name of the cache file `path` of the mirror is written there.

    `cache/KEY/dataset/model/NAME.h5` -> `cards/KEY/dataset/model/NAME.json`
    """
    root = path.parents[4]
    return root / "cards" / path.relative_to(root / "cache").with_suffix(".json")


def is_ours(name: str) -> bool:
    """Whether `name` is one that featcache gives; anything else in the store is no business of ours."""
    return _NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def read_card(path: Path) -> dict[str, Any] | None:
    """What the store has under the name of the cache file `path` of a mirror; None: nothing that is known.

    Keys: `stamp`, `bytes`, `modified` (seconds since the epoch); of a good file `meta` and `columns` (as its
    seal has them); of another `damage` (a sentence) and `corrupt` (else it is no cache file).
    """
    try:
        card = json.loads(card_path(path).read_bytes())
        whole = isinstance(card, dict) and {"stamp", "bytes", "modified"} <= set(card)
        return card if whole and ("damage" in card or {"meta", "columns", "digest"} <= set(card)) else None
    except (OSError, ValueError):
        return None


def description(entry: Remote, size: int) -> dict[str, Any]:
    """`meta`, `columns` and `digest` of a cache file; only its first bytes and its description are read."""
    where = shown(entry.url)
    seal = _seal(entry, size)
    columns = checked_entries(seal, size, where)
    try:
        meta = json.loads(read_column(entry, "meta", columns["meta"]).tobytes())
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise CorruptCache(f"{shown(entry.url)}: /meta is no JSON object", hint=HINT)
    return {"meta": meta, "columns": columns, "digest": seal["digest"]}


def _seal(entry: Remote, size: int) -> dict[str, Any]:
    where = shown(entry.url)
    try:
        return read_seal(BytesIO(entry.read(0, min(HEAD, size))), where)
    except CorruptCache:
        if size <= HEAD:
            raise
        return read_seal(BytesIO(entry.read(0, min(LONGEST_SEAL, size))), where)


def seal_digest(entry: Remote) -> str | None:
    """The checksum of the seal of a file of a store; None where there is none, or it is no sealed file.

    Raises:
        CacheError: the store cannot be asked.
    """
    info = entry.info()
    if info is None:
        return None
    try:
        seal = _seal(entry, int(info["size"]))
    except CacheError as error:
        if error.__cause__ is not None and not isinstance(error, CorruptCache):
            raise  # out of reach: nothing is known of the file itself
        return None
    return str(seal["digest"]) if seal["length"] == info["size"] else None


def cache_of(path: Path) -> Path:
    """The cache file that `path` is, or is a shard of."""
    return path.with_name(_SHARD.sub(".h5", path.name))


def shard_names(card: Mapping[str, Any], path: Path) -> list[str]:
    """Names of the shards that the cache file `path` consists of in the store."""
    names = [str(each["name"]) for each in card.get("meta", {}).get("shards", [])]
    return [name for name in names if _SHARD.search(name) and _SHARD.sub(".h5", name) == path.name]


def in_store(path: Path) -> bool:
    """Whether the store had the cache file or shard `path` of a mirror at the last look."""
    owner = cache_of(path)
    card = read_card(owner)
    return card is not None and (path == owner or path.name in shard_names(card, owner))


def read_column(entry: Remote, name: str, about: dict[str, Any]) -> np.ndarray:
    """One column of a file of a store, by its place; checked like any other."""
    sums_at = about["checksums"]
    content = entry.read(about["offset"], about["offset"] + about["bytes"]) if about["bytes"] else b""
    sums = entry.read(sums_at, sums_at + 16 * chunk_count(about["bytes"])) if about["bytes"] else b""
    blocks = range(chunk_count(about["bytes"]))
    if len(content) != about["bytes"] or not all(intact(memoryview(content), sums, n) for n in blocks):
        raise CorruptCache(f"{shown(entry.url)}: {name} is damaged", hint=HINT)
    return np.frombuffer(content, DTYPES[about["dtype"]]).reshape(about["shape"])
