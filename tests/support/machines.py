"""Machines that share a cache in a store, and cache files that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, add_request
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.cache.writing.cache_writer import write_cache
from featcache.system.stores import Remote, opened
from tests.support.documents import cache_document, encoder_document, make_request


@dataclass
class Machine:
    """One of several machines that use the same store: its own mirror folder."""

    root: Path
    url: str
    use: Callable[[Machine], None]

    def cache(self) -> Cache:
        """Be this machine from now on; its cache, whose next look at the store is a new one."""
        self.use(self)
        return Cache.open(self.url)


def make(cache: Cache, name: str = "train", seed: int = 0, rows: int = 50, width: int = 8) -> Path:
    """A sealed cache file of random features with a record that answers `{"asked": seed}`."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 256, (rows, 32), dtype=np.uint8)
    labels = draw.integers(0, 2, rows)
    encoder = encoder_document(max_length=16, storage="float32")
    document = cache_document(encoder, ["last/cls"], hashes, labels, ("bad", "good"))
    path = cache.path("data", "model", name, document.fingerprint)
    x = draw.standard_normal((rows, width)).astype(np.float32)
    columns = [
        Column("views/last-cls", x.shape, "float32", [x]),
        Column("labels", (rows,), "int64", [labels]),
        Column("row_hash", (rows, 32), "uint8", [hashes]),
        Column("n_tokens", (rows,), "int32", [np.full(rows, 3)]),
        Column("truncated", (rows,), "uint8", [np.zeros(rows)]),
    ]
    content = document.to_json()
    meta = {"format": "featcache", "fingerprint": document.fingerprint, "split": name, "document": content}
    write_sealed(path, meta, columns)
    asked = make_request(views={"last/cls": "last/cls"}, source={"asked": seed})
    add_request(CacheFile(path), asked)
    return path


def pushed(machine: Machine, *seeds: int, **options: Any) -> list[Path]:
    """Cache files that `machine` makes and pushes to the store."""
    cache = machine.cache()
    paths = [make(cache, seed=seed, **options) for seed in seeds]
    for path in paths:
        cache.push(path)
    return paths


def entry(machine: Machine, path: Path) -> Remote:
    """The file of the store that belongs to the mirror's `path`."""
    return opened(machine.url).child("/".join(path.parts[-3:]))


def make_other(path: Path) -> bytes:
    """Give the file of the same fingerprint other numbers, as another processor would."""
    sealed = SealedFile(path)
    columns = [
        Column(name, column.shape, column.dtype.name, [column + (name.startswith("views"))])
        for name in sealed.names
        if name != "meta"
        for column in [np.array(sealed.column(name))]
    ]
    write_sealed(path, sealed.description.to_json(), columns, replace=True)
    return path.read_bytes()


def make_shards(cache: Cache, seed: int = 3) -> Path:
    """A cache file of several shards."""
    single = make(cache, seed=seed, rows=600)
    sealed = SealedFile(single)
    arrays = {name: np.array(sealed.column(name)) for name in sealed.names if name != "meta"}

    def columns(rows: slice) -> list[Column]:
        parts = {name: array[rows] for name, array in arrays.items()}
        return [Column(name, part.shape, part.dtype.name, [part]) for name, part in parts.items()]

    assert write_cache(single, sealed.description, 600, columns, 25_000, replace=True)
    return single
