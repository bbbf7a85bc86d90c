"""How much memory a cache of many shards takes, while it is written and while a head is trained on it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np

from featcache.bench.timing import run_module, timed
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.cache.description import FileDescription
from featcache.cache.sealed_writer import Column
from featcache.cache.shards import shard_paths
from featcache.cache.writing.cache_writer import write_cache
from featcache.errors import CacheError
from featcache.fingerprint import CacheDocument, Dtypes, EncoderDocument, LabelsPart, RowsPart
from featcache.system.machine import peak_memory

ROWS, WIDTH = 20_000_000, 64
SHARD_SIZE = 400_000_000  # bytes
CHUNK = 1 << 16  # rows that are made up at once
NAMES = ("no", "yes")


@dataclass(frozen=True, kw_only=True)
class ShardMemory:
    """What `measure` returns.

    Attributes:
        rss_mb: the peak memory of the process, mapped files included, in 10^6 bytes.
        write_rss_mb: likewise until the cache was written.
        accuracy: on the rows trained on.
        seconds: of the parts.
    """

    rss_mb: float
    write_rss_mb: float
    shards: int
    bytes: int
    rows: int
    width: int
    accuracy: float
    seconds: dict[str, float]


def measure(
    rows: int = ROWS, width: int = WIDTH, *, shard_size: int = SHARD_SIZE, folder: Path | None = None
) -> ShardMemory:
    """Write made-up rows into shards, train the exact head on them, and measure the memory.

    A process of its own does it, so that its peak memory is that of this work; its files are removed.

    Args:
        width: of the one view, float16.
        folder: on a disk with room for `rows * (2 * width + 48)` bytes; default: for temporary files.

    Raises:
        CacheError: the disk cannot hold the shards, or the process was ended.
    """
    with tempfile.TemporaryDirectory(prefix="featcache-", dir=folder) as name:
        found = run_module("featcache.bench.memory", name, rows, width, shard_size, error=CacheError)
    return msgspec.convert(found, ShardMemory)


def write_made_up(cache_dir: Path, rows: int, width: int, shard_size: int) -> Path:
    """A train split of two classes that a linear head can separate, with a few rows in memory at a time."""
    none = np.zeros(0, np.int64)  # the chains in the document are those of no rows: they would cost memory
    encoder = EncoderDocument(
        files={}, prompt="", max_length=1, truncation_side="right", dtype=Dtypes("float32", "float16")
    )
    chain = RowsPart.of(np.zeros((0, 32), np.uint8)).chain
    document = CacheDocument(encoder, ("last/mean",), RowsPart(rows, chain), LabelsPart.of(none, NAMES))
    name = document.fingerprint
    description = FileDescription(
        format="featcache", fingerprint=name, split="train", document=document.to_json()
    )
    path = Cache(cache_dir).path("made-up", "made-up", "train", name)

    def columns(part: slice) -> list[Column]:
        count = len(range(rows)[part])
        return [
            Column("views/last-mean", (count, width), "float16", _features(part, width)),
            Column("labels", (count,), "int64", (_labels(chunk) for chunk in _chunks(part))),
            Column("row_hash", (count, 32), "uint8", (_hashes(chunk) for chunk in _chunks(part))),
            Column("n_tokens", (count,), "int32", [np.ones(count, np.int32)]),
            Column("truncated", (count,), "uint8", [np.zeros(count, np.uint8)]),
        ]

    write_cache(path, description, rows, columns, shard_size)
    return path


def _chunks(rows: slice) -> Iterator[slice]:
    starts = range(rows.start, rows.stop, CHUNK)
    return (slice(start, min(start + CHUNK, rows.stop)) for start in starts)


def _labels(rows: slice) -> np.ndarray:
    return np.arange(rows.start, rows.stop, dtype=np.int64) % 3 % 2


def _hashes(rows: slice) -> np.ndarray:
    hashes = np.zeros((rows.stop - rows.start, 4), np.int64)
    hashes[:, 0] = np.arange(rows.start, rows.stop)
    return hashes.view(np.uint8)


def _features(rows: slice, width: int) -> Iterator[np.ndarray]:
    """Noise with a direction that the label moves rows along."""
    for chunk in _chunks(rows):
        noise = np.random.default_rng(chunk.start).standard_normal(
            (chunk.stop - chunk.start, width), np.float32
        )
        noise[:, 0] += 2.0 * _labels(chunk)
        yield noise.astype(np.float16)


def _peak_mb() -> float:
    """The peak memory of this process in 10^6 bytes; NaN if the system does not report it."""
    peak = peak_memory()
    return float("nan") if peak is None else round(peak / 1e6, 1)


def main() -> int:
    """Measure in this process, and print a `ShardMemory` as JSON."""
    from featcache.heads.features import LabelledFeatures
    from featcache.heads.registry import fit_exact
    from featcache.settings import HeadSettings

    folder, rows, width, shard_size = Path(sys.argv[1]), *(int(text) for text in sys.argv[2:5])
    path, write_seconds = timed(lambda: write_made_up(folder, rows, width, shard_size))
    write_rss = _peak_mb()
    features = CacheFile(path).features("last/mean")
    train = LabelledFeatures(features.x, features.y)
    held_out = LabelledFeatures(features.x[:CHUNK], features.y[:CHUNK])
    fit, fit_seconds = timed(lambda: fit_exact(train, held_out, len(NAMES), HeadSettings()))
    right = sum(
        int((fit.best.logits(features.x[part]).argmax(axis=1) == features.y[part]).sum())
        for part in _chunks(slice(0, rows))
    )
    found = ShardMemory(
        rss_mb=_peak_mb(),
        write_rss_mb=write_rss,
        shards=len(shard_paths(path)),
        bytes=CacheFile(path).sealed.nbytes,
        rows=rows,
        width=width,
        accuracy=right / rows,
        seconds={"write": round(write_seconds, 2), "fit": round(fit_seconds, 2)},
    )
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
