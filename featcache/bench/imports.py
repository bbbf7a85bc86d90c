"""Importing vectors beside copying the bytes of their file, in one run and on one file system."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.bench.timing import DIGITS, Machine, Timings, this_machine
from featcache.cache.cache import Cache
from featcache.cache.record import Provenance
from featcache.data.split import from_texts
from featcache.importing.check import SplitVectors
from featcache.importing.open import open_vectors
from featcache.importing.seal import VectorSealer
from featcache.settings import Settings
from featcache.system.documents import tidied
from featcache.system.durable import fsync_file, require_space
from featcache.system.progress import OnProgress, Progress, ignore

RUNS = 3
BLOCK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class ImportBenchmark:
    """What `bench_import` returns.

    Attributes:
        ratio: seconds of the import / seconds of the copy.
        seconds: `copy` of the file, durable; `import` of it into a sealed one; the same import `again`. Each
            is a median of `RUNS`.
        bytes: of the file of vectors.
    """

    ratio: float
    seconds: dict[str, float]
    rows: int
    width: int
    dtype: str
    bytes: int
    machine: Machine


def bench_import(
    settings: Settings, *, rows: int = 1_000_000, width: int = 768, dtype: str = "float32",
    on_progress: OnProgress = ignore,
) -> ImportBenchmark:  # fmt: skip
    """The time that an import takes beside a copy of its file. Texts and labels are in memory.

    Args:
        settings: the cache folder in whose file system the files are written (and removed).
        on_progress: receives what is measured next as a stage.

    Raises:
        CacheError: the disk cannot hold the files.
    """
    folder = Cache.open(settings.paths.cache_dir).folder
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, 3 * rows * width * np.dtype(dtype).itemsize, "the benchmark")
    texts = (f"text {row}" for row in range(rows))
    split = from_texts("train", texts, np.arange(rows) % 2)
    timings = Timings()
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=folder) as name:
        source, copy = Path(name) / "vectors.npy", Path(name) / "copy.npy"
        on_progress(Progress(f"writing {rows:,} vectors of {width}"))
        _write(source, rows, width, dtype)
        sealer = VectorSealer(
            cache=Cache(Path(name) / "cache"), name="bench", model=None, dataset="bench", shard_size=1 << 62,
            made=Provenance(),
        )  # fmt: skip
        for number in range(RUNS):
            on_progress(Progress(f"copying and importing them, {number + 1} of {RUNS}"))
            timings.run("copy", lambda: _copy(source, copy))
            copy.unlink()
            vectors = SplitVectors(open_vectors(source), split.row_numbers, dtype)
            one = replace(sealer, name=f"bench{number}")
            file, _ = timings.run("import", lambda: one.seal(split, vectors))  # noqa: B023
            timings.run("again", lambda: one.seal(split, vectors))  # noqa: B023
            one.cache.remove(file.path)
        nbytes = source.stat().st_size
    seconds = timings.medians
    result = ImportBenchmark(
        ratio=seconds["import"] / seconds["copy"], seconds=seconds, rows=rows, width=width, dtype=dtype,
        bytes=nbytes, machine=this_machine("numpy", "h5py", "xxhash"),
    )  # fmt: skip
    return tidied(result, digits=DIGITS)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    fsync_file(target)


def _write(path: Path, rows: int, width: int, dtype: str) -> None:
    block = np.random.default_rng(0).normal(size=(BLOCK_ROWS, width)).astype(dtype)
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, width)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, BLOCK_ROWS):
            file.write(block[: rows - start].tobytes())
    fsync_file(path)
