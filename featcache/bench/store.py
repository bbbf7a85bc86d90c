"""What safety costs: commits and checksums beside encoding, verification beside reading, in one run.

Commits and sealing are timed one after the other with the encoding; an extraction commits while it encodes,
so that the result is the most that they can cost.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py  # noqa: F401  (its import does not belong to the cost of sealing)
import numpy as np
import safetensors.numpy  # noqa: F401

from featcache.backbone.encoder import Encoder
from featcache.bench.timing import DIGITS, Machine, Timings, this_machine
from featcache.cache.cache import Cache
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.cache.staging import Staging
from featcache.extraction.partition import UNIT_BATCHES, token_costs, unit_starts
from featcache.heads.features import Standard, row_slices
from featcache.settings import Settings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

ROWS = 1_000_000
RUNS = 5
WRITE_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class StoreBenchmark:
    """What `bench_store` returns.

    Attributes:
        commit_overhead: (commits + sealing + removal of the commit units) / encoding.
        read_overhead: checking the checksums of a column / the first pass that training makes over it (mean
            and scale of the features).
        convert_overhead: checking / the shortest possible pass, to float32 in the cache of the processor.
        seconds: of each part; medians of 5 for reading.
        bytes: of the column that is read.
    """

    commit_overhead: float
    read_overhead: float
    convert_overhead: float
    seconds: dict[str, float]
    texts: int
    rows: int
    bytes: int
    verify_gb_per_s: float
    machine: Machine


def bench_store(
    settings: Settings, texts: Sequence[str], *, rows: int = ROWS, on_progress: OnProgress = ignore
) -> StoreBenchmark:
    """The share of an extraction, and of a reading, that goes into safety.

    Args:
        settings: the encoder, and the cache folder in whose file system the files are written (and removed).
        texts: what is encoded, in the commit units of an extraction.
        rows: of the file that is read, as wide as the vectors of the encoder, float16.
        on_progress: receives what is measured next as a stage.

    Raises:
        CacheError: the disk cannot hold the file.
    """
    cache_dir = Cache.open(settings.paths.cache_dir).folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=cache_dir) as name:
        on_progress(Progress(f"encoding {len(texts)} texts, committing and sealing them"))
        writing, width = _write(settings, texts, Path(name))
        on_progress(Progress(f"reading {rows} rows of {width}"))
        reading, nbytes = _read(Path(name) / "read.h5", rows, width)
    safety = writing["commit"] + writing["seal"] + writing["discard"]
    result = StoreBenchmark(
        commit_overhead=safety / writing["encode"],
        read_overhead=reading["verify"] / reading["first_pass"],
        convert_overhead=reading["verify"] / reading["convert"],
        seconds=writing | reading,
        texts=len(texts),
        rows=rows,
        bytes=nbytes,
        verify_gb_per_s=nbytes / reading["verify"] / 1e9,
        machine=this_machine("numpy", "h5py", "xxhash", "safetensors"),
    )
    return tidied(result, digits=DIGITS)


def _write(settings: Settings, texts: Sequence[str], folder: Path) -> tuple[dict[str, float], int]:
    """Seconds for encoding, committing, sealing and removing commit units; the width of the vectors."""
    encoder = Encoder.load(settings.backbone, settings.features)
    encoder.encode(encoder.tokenize(texts[:8]))  # the first use of every kernel does not count
    timings = Timings()
    staging = Staging(folder / "write.partial", {"bench": "store"})
    ready = timings.run("commit", staging.committed)
    costs = token_costs(np.array([len(text.encode()) for text in texts]), encoder.max_length)
    starts = unit_starts(costs, UNIT_BATCHES * encoder.batch_tokens)
    for number, (start, end) in enumerate(itertools.pairwise(starts), start=len(ready)):
        unit = texts[start:end]
        encoded = timings.run("encode", lambda: encoder.encode(encoder.tokenize(unit)))  # noqa: B023
        timings.run("commit", lambda: staging.commit(number, encoded.views))  # noqa: B023

    def seal() -> list[Column]:
        parts = [staging.read(number) for number in range(len(starts) - 1)]
        columns = [
            Column(f"views/{view}", (len(texts), x.shape[1]), x.dtype.name, [part[view] for part in parts])
            for view, x in parts[0].items()
        ]
        write_sealed(folder / "write.h5", {"bench": "store"}, columns)
        return columns

    columns = timings.run("seal", seal)
    timings.run("discard", staging.discard)
    return timings.sums, max(column.shape[1] for column in columns)


def _read(path: Path, rows: int, width: int) -> tuple[dict[str, float], int]:
    """Median seconds for checking a column and for two ways of reading it; the bytes of the column."""
    column = Column("x", (rows, width), "float16", _made_up(rows, width))
    write_sealed(path, {}, [column])
    timings = Timings()
    for _ in range(RUNS):
        file = SealedFile(path)
        x = timings.run("verify", lambda: file.column("x"))  # noqa: B023
        timings.run("first_pass", lambda: Standard.of(x))  # noqa: B023
        timings.run("convert", lambda: _convert(x))  # noqa: B023
    return timings.medians, column.nbytes


def _convert(x: np.ndarray) -> None:
    """Every number once as float32, in the cache of the processor."""
    for rows in row_slices(x):
        x[rows].astype(np.float32)


def _made_up(rows: int, width: int) -> Iterator[np.ndarray]:
    block = np.random.default_rng(0).normal(size=(WRITE_ROWS, width)).astype(np.float16)
    for start in range(0, rows, WRITE_ROWS):
        yield block[: rows - start]
