"""The description of a sealed file, which it has as JSON: what it is, and of a manifest its shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featcache.cache.seal import DTYPES
from featcache.fingerprint import JsonDocument

SHARD = "featcache shard"  # the `format` of a shard's description


@dataclass(frozen=True)
class ShardEntry(JsonDocument):
    """A shard as its manifest lists it.

    Attributes:
        seal: checksum of its seal.
        truncated, n_tokens: sums of these columns; None if the shard has no such column.
    """

    name: str
    rows: int
    bytes: int
    seal: str
    truncated: int | None = None
    n_tokens: int | None = None

    def __post_init__(self) -> None:
        if min(self.rows, self.bytes) < 1 or min(self.truncated or 0, self.n_tokens or 0) < 0:
            raise ValueError(f"{self.name!r} has a number below its least")

    def total(self, column: str) -> int | None:
        """The sum of a column of numbers; None if the manifest does not have it."""
        return self.truncated if column == "truncated" else self.n_tokens if column == "n_tokens" else None


@dataclass(frozen=True)
class ColumnType(JsonDocument):
    """Type and shape of the rows of a column."""

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or len(self.shape) > 1 or not all(0 <= n < 1 << 40 for n in self.shape):
            raise ValueError("a column of an unknown type")


@dataclass(frozen=True, kw_only=True)
class FileDescription(JsonDocument):
    """What a sealed file says of itself, in the order of its HDF5 attributes.

    Attributes:
        format: `featcache` for features, `featcache states`, or `SHARD`.
        fingerprint: of `document`; of a shard, that of its cache file.
        split, model: for people; the model of features alone.
        shard, first_row, rows: of a shard: its number, and which rows of its cache file it has.
        document: the JSON object of the `CacheDocument` or `StatesDocument`; a shard has none.
        columns, shards: of a manifest: the columns of its shards, and the shards in order.
    """

    format: str = ""
    fingerprint: str = ""
    split: str = ""
    model: str | None = None
    shard: int | None = None
    first_row: int | None = None
    rows: int | None = None
    document: dict[str, Any] | None = None
    columns: dict[str, ColumnType] | None = None
    shards: tuple[ShardEntry, ...] | None = None
