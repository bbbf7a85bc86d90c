"""Import vectors that were made elsewhere, for the texts and labels of a file or in memory."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.record import Provenance
from featcache.cache.shards import parse_shard_size
from featcache.data.locate import source_name
from featcache.data.source_column import read_column
from featcache.data.split import SPLITS, Split, available, count_labels, from_texts, load_splits
from featcache.errors import SourceError, UsageError
from featcache.importing.check import SplitVectors
from featcache.importing.open import open_vectors
from featcache.importing.seal import VectorSealer
from featcache.importing.vector_file import VectorFile, in_memory
from featcache.settings import DataSettings, PathSettings, Settings
from featcache.system.progress import OnProgress, ignore

NAME = re.compile(r"\w[\w.\-]{0,63}")
STORAGES = ("float16", "float32")


@dataclass(frozen=True, kw_only=True)
class VectorsToImport:
    """What the user says of vectors.

    Attributes:
        name: under which heads find them: `vectors:NAME`.
        model: what made them, in the user's words.
        array: of the file, the array or column with the vectors, where there are several.
        order_key: column of the texts, and column or array of the vectors, with the same value in each row.
        storage: `float16` or `float32`; None: float16 stays, all others become float32.
    """

    name: str
    model: str | None = None
    array: str | None = None
    order_key: str | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is no name for vectors",
                hint="at most 64 letters, digits, points, - and _, a letter or digit first",
            )
        if self.storage not in (None, *STORAGES):
            raise UsageError(f"--storage {self.storage}", hint=f"it is one of {', '.join(STORAGES)}")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The sealed vectors of one split.

    Attributes:
        cached: the same vectors, texts and labels were there.
        width: D, numbers in each vector.
        dtype, storage: of the numbers in the file, and as they are kept.
        labels: rows by label name; empty for numbers.
        notes: what is good to know, as sentences.
    """

    split: str
    rows: int
    width: int
    dtype: str
    storage: str
    seconds: float
    cached: bool
    fingerprint: str
    path: Path
    labels: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def import_file(
    settings: Settings,
    vectors: Path,
    asked: VectorsToImport,
    split: str | None = None,
    *,
    on_progress: OnProgress = ignore,
) -> list[Imported]:
    """Import the vectors of a file for the rows of the texts that `settings.data` names.

    Args:
        split: as which all rows count; None: train, of which `settings.data` holds validation out, and with
            `test_share` test.

    Returns:
        One for each split.

    Raises:
        SourceError: vectors or texts cannot be read, or do not belong together.
        UsageError: the name has other vectors of a split.
        CacheError: the cache cannot be written.
    """
    source = split or "train"
    held = available([source], settings.data) if split is None else (source,)
    texts = load_splits(settings.data, held, seed=settings.seed, hold_out=split is None)
    file = open_vectors(vectors, asked.array, source)
    rows = next(iter(texts.values())).source_rows
    if rows != file.rows:
        raise SourceError(
            f"{file.where} has {file.rows:,} vectors, and the texts have {rows:,} rows",
            hint="one vector for each row of the texts, in the same order"
            + (
                "; a table of texts may have a header, see --text-column"
                if abs(rows - file.rows) == 1
                else ""
            ),
        )
    notes = (_order_note(file, settings.data, source, asked.order_key),)
    made = Provenance(vectors=str(vectors.expanduser().absolute()), texts=_texts_of(settings.data))
    name, paths = source_name(settings.data), settings.paths
    return _seal(file, texts, asked, name, made, paths, notes, on_progress)


def import_vectors(
    vectors: np.ndarray,
    texts: Iterable[str],
    labels: Iterable[object],
    *,
    name: str,
    split: str = "train",
    model: str | None = None,
    pairs: Iterable[str] | None = None,
    settings: Settings | None = None,
) -> Imported:
    """Import vectors in memory into the cache, where heads find them as `vectors:NAME`.

    The same vectors, texts and labels again are recognised. Example: `import_vectors(X, texts, labels,
    name="mine")`, the same with `split="validation"`, then
    `train_head(load_settings({"model": "vectors:mine"}))`.

    Args:
        vectors: `[N, D]` of float16 (kept so), float32 or float64 (kept as float32).
        texts: N texts.
        labels: N labels, see `split.from_texts`.
        name: of at most 64 letters, digits, points, - and _.
        split: `train`, `validation` or `test`; labels of the others are among those of train.
        model: what made the vectors, in your words.
        pairs: N second texts.
        settings: the folder of the cache, and the task: `regression` where the labels are numbers.

    Raises:
        SourceError: vectors, texts and labels do not belong together, or cannot be used.
        UsageError: the name has other vectors of this split.
        CacheError: the cache cannot be written.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split", hint=f"splits are: {', '.join(SPLITS)}")
    asked, file = VectorsToImport(name=name, model=model), in_memory(vectors)
    own = settings or Settings()
    rows = from_texts(split, texts, labels, None, pairs, own.data.task)
    if len(rows) != file.rows:
        raise SourceError(
            f"{file.rows:,} vectors, and {len(rows):,} texts",
            hint="give a vector for each text, in the same order",
        )
    return _seal(file, {split: rows}, asked, "memory", Provenance(), own.paths, (), ignore)[0]


def _seal(
    file: VectorFile, texts: dict[str, Split], asked: VectorsToImport, dataset: str, made: Provenance,
    paths: PathSettings, notes: tuple[str, ...], on_progress: OnProgress,
) -> list[Imported]:  # fmt: skip
    sealer = VectorSealer(
        cache=Cache.open(paths.cache_dir), name=asked.name, model=asked.model, dataset=dataset,
        shard_size=parse_shard_size(paths.shard_size), made=made, on_progress=on_progress,
    )  # fmt: skip
    storage, found = asked.storage or file.storage, []
    for name, split in texts.items():
        began = time.perf_counter()
        sealed, cached = sealer.seal(split, SplitVectors(file, split.row_numbers, storage))
        labels = np.asarray(sealed.sealed.column("labels"))
        found.append(
            Imported(
                split=name,
                rows=len(split),
                width=file.width,
                dtype=file.dtype,
                storage=storage,
                seconds=time.perf_counter() - began,
                cached=cached,
                fingerprint=sealed.fingerprint,
                path=sealed.path,
                labels=count_labels(labels, sealed.document.labels.names),
                notes=(*split.read_as, *split.notes, *notes),
            )
        )
    return found


def _order_note(file: VectorFile, data: DataSettings, split: str, key: str | None) -> str:
    """Compare the order keys of vectors and texts; says what was compared.

    Raises:
        SourceError: a row has another key, or the file has no keys.
    """
    if key is None:
        return (
            "the order of the vectors is taken to be that of the texts: only their number was compared "
            "(--order-key NAME compares a column of both)"
        )
    if file.column is None:
        raise SourceError(
            f"{file.where} has vectors alone, and no keys",
            hint=f"put both into one file: numpy.savez(file, vectors=..., {key}=...)",
        )
    of_texts = read_column(data, split, key, "--order-key")
    for number, (one, other) in enumerate(zip_longest(file.column(key), of_texts), start=1):
        if _as_key(one) != _as_key(other):
            raise SourceError(
                f"row {number} of {file.where} has {key} {one!r:.60}, and of the texts {other!r:.60}",
                hint="bring both into the same order, or give the texts that were encoded",
            )
    return f"{file.rows:,} rows have the same {key} in vectors and texts"


def _as_key(value: object) -> str | None:
    """A key as text: 7, 7.0 and "7" are one, as csv files have texts alone."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return None if value is None else str(value).strip()


def _texts_of(data: DataSettings) -> dict[str, Any]:
    """The settings that say which texts these are, so that heads and pages find them; paths are absolute."""
    files = {split: str(Path(path).absolute()) for split, path in (data.data_files or {}).items()}
    default = DataSettings()
    given = {name: value for name, value in asdict(data).items() if value != getattr(default, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()} | {
        "data_files": files
    }
