"""How much memory a cache of many shards takes: made-up rows are written and a head is trained on them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.cache.sealed_file import Column
from featcache.cache.shards import shard_paths, write_cache
from featcache.errors import CacheError
from featcache.fingerprint import CacheDocument, EncoderDocument, LabelsPart, RowsPart
from featcache.system.machine import peak_memory

ROWS, WIDTH = 20_000_000, 64
SHARD_SIZE = 400_000_000  # bytes
CHUNK = 1 << 16  # rows that are made up at a time
NAMES = ("no", "yes")


def shard_memory(rows: int = ROWS, width: int = WIDTH) -> float:
    """The `rss_mb` of `measure`."""
    return float(measure(rows, width)["rss_mb"])


def measure(
    rows: int = ROWS,
    width: int = WIDTH,
    *,
    shard_size: int = SHARD_SIZE,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Write made-up rows into shards, train the exact head on them, and say what it took.

    Another process does it, so that nothing else counts; its files are removed.

    Args:
        width: of the one view, float16.
        folder: on a disk with room for `rows * (2 * width + 48)` bytes; default: for temporary files.

    Returns:
        JSON-able: `rss_mb`, the most memory the process had at any time, mapped files too, in 10^6 bytes;
        `write_rss_mb`, likewise until the cache was written; `shards`, `bytes`, `seconds` of the parts,
        `accuracy` on the rows trained on, `rows`, `width`.

    Raises:
        CacheError: the disk cannot hold the shards, or the process was ended.
    """
    with tempfile.TemporaryDirectory(prefix="featcache-", dir=folder) as name:
        argv = [sys.executable, "-m", "featcache.bench.memory", name, str(rows), str(width), str(shard_size)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CacheError(f"the measuring process ended with {done.returncode}: {said[-1] if said else ''}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_made_up(cache_dir: Path, rows: int, width: int, shard_size: int) -> Path:
    """A train split of two classes that a linear head can tell apart, a few rows in memory at a time."""
    none = np.zeros(0, np.int64)  # the document is not to cost memory: its chains are those of no rows
    encoder = EncoderDocument(
        files={}, prompt="", max_length=1, truncation_side="right", compute="float32", storage="float16"
    )
    chain = RowsPart.of(np.zeros((0, 32), np.uint8)).chain
    document = CacheDocument(encoder, ("last/mean",), RowsPart(rows, chain), LabelsPart.of(none, NAMES))
    name = document.fingerprint
    meta = {"format": "featcache", "fingerprint": name, "split": "train", "document": document.to_json()}
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

    write_cache(path, meta, rows, columns, shard_size)
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
    """The most memory that this process ever had, in 10^6 bytes; NaN where the system does not tell."""
    peak = peak_memory()
    return float("nan") if peak is None else round(peak / 1e6, 1)


def main() -> int:
    """Be the measuring process; what it found as JSON."""
    from featcache.heads.features import LabelledFeatures
    from featcache.heads.registry import fit_exact
    from featcache.settings import HeadSettings

    folder, rows, width, shard_size = Path(sys.argv[1]), *(int(text) for text in sys.argv[2:5])
    began = time.perf_counter()
    path = write_made_up(folder, rows, width, shard_size)
    written, write_rss = time.perf_counter(), _peak_mb()
    features = CacheFile(path).features("last/mean")
    train = LabelledFeatures(features.x, features.y)
    held_out = LabelledFeatures(features.x[:CHUNK], features.y[:CHUNK])
    fit = fit_exact(train, held_out, len(NAMES), HeadSettings())
    fitted = time.perf_counter()
    right = sum(
        int((fit.best.logits(features.x[part]).argmax(axis=1) == features.y[part]).sum())
        for part in _chunks(slice(0, rows))
    )
    found = {
        "rss_mb": _peak_mb(),
        "write_rss_mb": write_rss,
        "shards": len(shard_paths(path)),
        "bytes": CacheFile(path).sealed.nbytes,
        "rows": rows,
        "width": width,
        "accuracy": right / rows,
        "seconds": {"write": round(written - began, 2), "fit": round(fitted - written, 2)},
    }
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
