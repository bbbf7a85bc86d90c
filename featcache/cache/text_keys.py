"""Keys of the normalised texts of cached rows: `<cache>/texts/<chain of the rows, 16 hex>.keys`.

Sealed files have hashes of the exact texts alone. The keys tell which rows of two splits have the same text
but for case, width and white space; they are made from the source once, and can be made again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from featcache.errors import CacheError
from featcache.fingerprint import row_chain
from featcache.plain_file import read_plain
from featcache.system.durable import write_file

TEXTS = "texts"


def read_text_keys(folder: Path, hashes: np.ndarray) -> np.ndarray | None:
    """The keys of these rows, uint64 `[N]`; None if there are none, or they are damaged.

    Args:
        folder: of the cache.
        hashes: row hashes uint8 `[N, 32]`.
    """
    size = hashlib.sha256().digest_size + 8 * len(hashes)
    try:
        content = read_plain(_path(folder, hashes), most=size)
    except OSError:
        return None
    digest, keys = content[: size - 8 * len(hashes)], content[size - 8 * len(hashes) :]
    if len(content) != size or hashlib.sha256(keys).digest() != digest:
        return None
    return np.frombuffer(keys, "<u8").astype(np.uint64)


def write_text_keys(folder: Path, hashes: np.ndarray, keys: np.ndarray) -> None:
    """Keep the keys of these rows; in a cache that cannot be written they are made again each time."""
    content = keys.astype("<u8").tobytes()
    with suppress(CacheError):
        write_file(_path(folder, hashes), hashlib.sha256(content).digest() + content)


def _path(folder: Path, hashes: np.ndarray) -> Path:
    return folder / TEXTS / f"{row_chain(hashes)[:16]}.keys"
