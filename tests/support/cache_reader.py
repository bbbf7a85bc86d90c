"""A reader of cache files written from docs/cache-format.md alone; nothing of featcache is used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import xxhash

STEP = 1 << 20


def read(path: Path) -> dict[str, np.ndarray]:
    """Every dataset by name; ValueError for a file that is not as the page says."""
    content = path.read_bytes()
    first, seal_line, checksum, _ = content.split(b"\n", 3)
    require(first == b"featcache cache 1", "name or version")
    body = first + b"\n" + seal_line + b"\n"
    require(xxhash.xxh3_128(body).hexdigest().encode() == checksum, "checksum of the seal")
    seal = json.loads(seal_line)
    start, columns = seal["user_block"], seal["columns"]
    require(not content[len(body) + 33 : start].strip(b"\0"), "zeros")
    require(len(content) == seal["length"], "length")
    require(content[start : start + 8] == b"\x89HDF\r\n\x1a\n", "HDF5 signature")
    structure, at = xxhash.xxh3_128(), start
    for column in sorted(columns.values(), key=lambda column: column["offset"]):
        if column["bytes"]:
            require(at <= column["offset"], "overlap")
            structure.update(content[at : column["offset"]])
            at = column["offset"] + column["bytes"]
    structure.update(content[at:])
    require(structure.hexdigest() == seal["structure"], "structure")
    return {name: read_column(content, column) for name, column in columns.items()}


def read_column(content: bytes, column: dict) -> np.ndarray:
    """One dataset, given its entry in the seal; checks its checksums."""
    kind = np.dtype(column["dtype"]).newbyteorder("<")
    require(math.prod(column["shape"]) * kind.itemsize == column["bytes"], "bytes")
    part = content[column["offset"] :][: column["bytes"]]
    for number, start in enumerate(range(0, len(part), STEP)):
        expected = content[column["checksums"] + 16 * number :][:16]
        require(xxhash.xxh3_128(part[start : start + STEP]).digest() == expected, f"chunk {number}")
    return np.frombuffer(part, kind).reshape(column["shape"])


def require(holds: bool, what: str) -> None:
    """Raise ValueError unless it `holds`."""
    if not holds:
        raise ValueError(what)
