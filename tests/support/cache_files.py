"""Small cache files, written without an extraction."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.fingerprint import row_hashes
from tests.support.documents import cache_document, encoder_document

VIEWS = ("last/cls", "-4/mean")


def seal(cache_dir: Path, split: str = "train", prompt: str = "", age: int = 0) -> Path:
    """A cache file of two rows and two views, as old as asked."""
    hashes, labels = row_hashes(["a", "b"]), np.array([1, 0])
    document = cache_document(encoder_document(prompt=prompt), VIEWS, hashes, labels, ["bad", "good"])
    path = Cache(cache_dir).path("some/data", "model", split, document.fingerprint)
    meta = {"fingerprint": document.fingerprint, "split": split, "document": document.to_json()}
    columns = [
        Column(f"views/{view.replace('/', '-')}", (2, 3), "float16", [np.full((2, 3), number)])
        for number, view in enumerate(VIEWS)
    ]
    columns += [Column("labels", (2,), "int64", [labels]), Column("row_hash", (2, 32), "uint8", [hashes])]
    columns += [Column("truncated", (2,), "uint8", [np.array([1, 0])])]
    assert write_sealed(path, meta, columns)
    os.utime(path, (age, age))
    return path
