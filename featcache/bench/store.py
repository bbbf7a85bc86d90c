"""What safety costs: commits and checksums beside encoding, verification beside reading, in one run.

Commits and the sealing are timed by themselves, one after the other with the encoding; an extraction does
the commits while it encodes, so that what is reported is the most that they can cost.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py  # noqa: F401  (its import is no part of what sealing costs)
import numpy as np
import safetensors.numpy  # noqa: F401

from featcache.backbone.encoder import Encoder
from featcache.cache.cache import Cache
from featcache.cache.sealed_file import Column, SealedFile, write_sealed
from featcache.cache.staging import Staging
from featcache.extraction.partition import BLOCK_BATCHES, block_starts, token_costs
from featcache.heads.features import Standard, row_slices
from featcache.settings import Settings

ROWS = 1_000_000
RUNS = 5
WRITE_ROWS = 8192


def bench_store(
    settings: Settings,
    texts: Sequence[str],
    *,
    rows: int = ROWS,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The share of an extraction that goes into safety, and the share of a reading.

    Args:
        settings: the encoder, and the cache folder in whose file system all is written (and removed).
        texts: what is encoded, in blocks as those of an extraction.
        rows: of the file that is read, as wide as the encoder's vectors, float16.
        report: told what is measured next.

    Returns:
        A JSON-able document: `commit_overhead`: (commits + sealing + removal of the blocks) / encoding;
        `read_overhead`: checking a column's checksums / the first pass that training makes over it (mean
        and scale of the features); `convert_overhead`: likewise beside the shortest possible pass, to
        float32 in the processor's cache; `seconds` (medians of 5 for reading), `texts`, `rows`, `bytes`,
        `verify_gb_per_s`, `machine`.

    Raises:
        CacheError: the disk cannot hold the file.
    """
    cache_dir = Cache.open(settings.paths.cache_dir).folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=cache_dir) as name:
        report(f"encoding {len(texts)} texts, committing and sealing them")
        writing, width = _write(settings, texts, Path(name))
        report(f"reading {rows} rows of {width}")
        reading, nbytes = _read(Path(name) / "read.h5", rows, width)
    safety = writing["commit"] + writing["seal"] + writing["discard"]
    return {
        "commit_overhead": round(safety / writing["encode"], 5),
        "read_overhead": round(reading["verify"] / reading["first_pass"], 5),
        "convert_overhead": round(reading["verify"] / reading["convert"], 5),
        "seconds": {part: round(value, 9) for part, value in (writing | reading).items()},
        "texts": len(texts),
        "rows": rows,
        "bytes": nbytes,
        "verify_gb_per_s": round(nbytes / reading["verify"] / 1e9, 2),
        "machine": {
            "cpu_count": os.cpu_count(),
            "platform": platform.platform(),
            "versions": {package: version(package) for package in ("numpy", "h5py", "xxhash", "safetensors")},
        },
    }


def _write(settings: Settings, texts: Sequence[str], folder: Path) -> tuple[dict[str, float], int]:
    """Seconds for encoding, committing, sealing and removing the blocks of `texts`; the vectors' width."""
    encoder = Encoder.load(settings.backbone, settings.features)
    encoder.encode(encoder.tokenize(texts[:8]))  # the first use of every kernel is not counted
    seconds = dict.fromkeys(("encode", "commit", "seal", "discard"), 0.0)
    began = time.perf_counter()

    def spent(part: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[part] += now - began
        began = now

    staging = Staging(folder / "write.partial", {"bench": "store"})
    ready = staging.committed()
    spent("commit")
    costs = token_costs(np.array([len(text.encode()) for text in texts]), encoder.max_length)
    starts = block_starts(costs, BLOCK_BATCHES * encoder.batch_tokens)
    for number, (start, end) in enumerate(itertools.pairwise(starts), start=len(ready)):
        encoded = encoder.encode(encoder.tokenize(texts[start:end]))
        spent("encode")
        staging.commit(number, encoded.views)
        spent("commit")
    parts = [staging.read(number) for number in range(len(starts) - 1)]
    columns = [
        Column(f"views/{view}", (len(texts), part.shape[1]), part.dtype.name, [one[view] for one in parts])
        for view, part in parts[0].items()
    ]
    write_sealed(folder / "write.h5", {"bench": "store"}, columns)
    spent("seal")
    staging.discard()
    spent("discard")
    return seconds, max(column.shape[1] for column in columns)


def _read(path: Path, rows: int, width: int) -> tuple[dict[str, float], int]:
    """Medians of the seconds for checking a column and for two ways of reading it; the column's bytes."""
    column = Column("x", (rows, width), "float16", _made_up(rows, width))
    write_sealed(path, {}, [column])
    taken: dict[str, list[float]] = {"verify": [], "first_pass": [], "convert": []}

    def timed(part: str, act: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = act()
        taken[part].append(time.perf_counter() - began)
        return result

    for _ in range(RUNS):
        file = SealedFile(path)
        x = timed("verify", lambda: file.column("x"))  # noqa: B023
        timed("first_pass", lambda: Standard.of(x))  # noqa: B023
        timed("convert", lambda: _convert(x))  # noqa: B023
    return {part: statistics.median(values) for part, values in taken.items()}, column.nbytes


def _convert(x: np.ndarray) -> None:
    """Every number once, as float32, with no memory to be fetched but theirs."""
    for rows in row_slices(x):
        x[rows].astype(np.float32)


def _made_up(rows: int, width: int) -> Iterator[np.ndarray]:
    block = np.random.default_rng(0).normal(size=(WRITE_ROWS, width)).astype(np.float16)
    for start in range(0, rows, WRITE_ROWS):
        yield block[: rows - start]
