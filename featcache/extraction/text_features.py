"""Features of texts in memory: each row from the sealed file that has it; the others are encoded once.

`extract_splits` makes one file of one split. Here texts are a fold, a batch or a single one, so rows are
looked up one by one, and only those that no file of the same encoder has are encoded; they become a sealed
file of their own under `cache/texts/`, for the next fold and the next process.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbone.endpoint.model import AnyModel, EndpointModel, find_any_model
from featcache.backbone.model_files.adapter.files import find_adapter
from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.model_files.kinds import ENDPOINT, kind_of
from featcache.backbone.tokens.unknown_tokens import MANY, unknown_text
from featcache.cache.cache import Cache
from featcache.cache.catalog import view_column
from featcache.data.split import from_texts
from featcache.errors import CacheError
from featcache.extraction.job import Job
from featcache.extraction.partition import first_occurrence
from featcache.fingerprint import FEATURE_FORMAT, EncoderDocument, row_hashes
from featcache.settings import BackboneSettings, Settings
from featcache.system.durable import explained
from featcache.system.lock import ProcessLock
from featcache.system.progress import OnProgress
from featcache.system.sharded_array import join_columns

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder

NAME = "texts"  # what the split and the data set are called in the cache folder

LoadEncoder = Callable[[Settings, ModelFiles], "Encoder"]


def text_features(
    texts: Sequence[str], settings: Settings, load: LoadEncoder, report: OnProgress | None = None
) -> np.ndarray:
    """The features of `texts`, in order; the backbone runs over those alone that no cache file has.

    Processes and threads that share a cache folder encode one after the other, each only what the
    others have not stored yet.

    Args:
        texts: one or more, each checked by `check_text`; equal ones are encoded once.
        settings: the features of their views are joined; with a compute dtype that is not `auto`.
        load: gives the encoder of `settings`; called only when it cannot be done without.
        report: called with progress.

    Returns:
        float32 `[N, D]`, whatever the storage dtype.

    Raises:
        BackboneError, UsageError: the model cannot be loaded, or has no such view or length.
        CacheError: a cache file is damaged, or the folder cannot be written.
    """
    job, hashes = _TextJob(settings, load, report), row_hashes(texts)
    found = _find(job, job.recorded_features(), hashes)
    if len(found.missing):
        with _locked(job):
            found = _find(job, job.recorded_features(), hashes)  # others may have stored rows meanwhile
            if len(found.missing):
                wanted = job.wanted_features()
                job.store(texts, hashes, _find(job, wanted, hashes).missing)
                found = _find(job, wanted, hashes)
    return found.features()


@dataclass(frozen=True)
class _WantedFeatures:
    """Which features are wanted: an encoder document and the stored names of views, in their order."""

    document: EncoderDocument
    views: tuple[str, ...]


class _TextJob(Job):
    """A job for texts that are in memory alone."""

    def __init__(self, settings: Settings, load: LoadEncoder, report: OnProgress | None = None) -> None:
        # With `force`, since rows are looked up here: they need not be looked for in donors again.
        super().__init__(settings, report, force=True, model=model_files(settings.backbone), source={})
        self._load = load

    def encoder(self, split: str) -> Encoder:
        if self._encoder is None:
            self._encoder = self._load(self.settings, self.model)
        return self._encoder

    def dataset_name(self) -> str:
        return NAME

    def recorded_features(self) -> _WantedFeatures | None:
        """What the settings ask for, where the record of some file has it; no model is loaded.

        The length of the longest text and the name of the view depend on the model, and are the same for
        the same model files; so does the dtype, for requests that asked for `auto`.
        """
        asked, views = self.request(NAME).encoder, self.settings.features.views
        for file in self.cache.files():
            document = file.document.encoder
            if document.format == FEATURE_FORMAT and document.dtype.compute == asked.dtype:
                for known in file.record.requests:
                    if replace(known.encoder, dtype=asked.dtype) == asked and set(views) <= set(known.views):
                        return _WantedFeatures(document, tuple(known.views[view] for view in views))
        return None

    def wanted_features(self) -> _WantedFeatures:
        """What the settings ask for, by the loaded encoder."""
        spec = self.unit_encoder(NAME).spec
        views = tuple(spec.views[view] for view in self.settings.features.views)
        return _WantedFeatures(spec.document, views)

    def store(self, texts: Sequence[str], hashes: np.ndarray, rows: np.ndarray) -> None:
        """Encode these rows of `texts` and seal them; errors name the text by its place in `texts`."""
        if len(rows) == 0:
            return
        self.source = {NAME: hashlib.sha256(hashes[rows].tobytes()).hexdigest()}
        whole = from_texts(NAME, texts)
        made = self.extract(replace(whole, labels=whole.labels[rows], row_numbers=whole.row_numbers[rows]))
        if (share := made.unknown_tokens or 0.0) > MANY:
            warnings.warn(unknown_text(f"{len(rows):,} texts", share), stacklevel=2)


@dataclass(frozen=True)
class _FoundRows:
    """Where rows lie in the cache.

    Attributes:
        columns: those of the views, in each file.
        files: path and number of rows of each file that may be used.
        origin: int64 `[N]`: places among the rows of all files in order; a place after the last of
            them is one of the N rows themselves, of equal ones the first.
    """

    cache: Cache
    columns: tuple[str, ...]
    files: tuple[tuple[Path, int], ...]
    origin: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """Which of the N rows no file has, equal ones once: int64, ascending."""
        held = sum(count for _, count in self.files)
        return np.unique(self.origin[self.origin >= held]) - held

    def features(self) -> np.ndarray:
        """float32 `[N, D]`, where none is missing.

        Raises:
            CacheError: a row is missing, or a file was removed or is damaged.
        """
        if len(self.missing):
            raise CacheError("features vanished from the cache while they were read", hint="run it again")
        x, start = np.empty((0, 0), np.float32), 0
        for path, count in self.files:
            picked = np.flatnonzero((self.origin >= start) & (self.origin < start + count))
            if len(picked):
                sealed = self.cache.file(path).sealed
                values = join_columns([sealed.column(column) for column in self.columns])
                x = x if x.size else np.empty((len(self.origin), values.shape[1]), np.float32)
                x[picked] = values[self.origin[picked] - start]
            start += count
        return x


def _find(job: _TextJob, wanted: _WantedFeatures | None, hashes: np.ndarray) -> _FoundRows:
    """Look rows (hashes uint8 `[N, 32]`) up in all files of this very encoder; one is open at a time."""
    files, parts = [], []
    for file in job.cache.files() if wanted else ():
        if wanted and file.document.encoder == wanted.document and set(wanted.views) <= set(file.views):
            files.append((file.path, file.rows))
            parts.append(np.array(file.sealed.column("row_hash")))
    first = first_occurrence(np.concatenate([*parts, hashes]))
    columns = tuple(map(view_column, wanted.views)) if wanted else ()
    return _FoundRows(job.cache, columns, tuple(files), first[len(first) - len(hashes) :])


@contextmanager
def _locked(job: _TextJob) -> Iterator[None]:
    """Wait until no other process or thread encodes texts of this model for this cache folder."""
    path = job.cache.path(NAME, job.any_model.name, NAME, "all").with_suffix(".lock")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = ProcessLock(path)
        lock.acquire(wait=-1)
    try:
        yield
    finally:
        lock.release()


def model_files(backbone: BackboneSettings) -> AnyModel:
    """`find_any_model` with a hub revision resolved once a process: a grid search asks hundreds of times."""
    named = BackboneSettings(backbone.model, backbone.revision, backbone.trust_remote_code, hub=backbone.hub)
    quick = kind_of(backbone.model) == ENDPOINT or Path(backbone.model).expanduser().is_dir()
    files = find_any_model(named) if quick else _find_on_hub(named)
    if isinstance(files, EndpointModel):
        return files
    return replace(files, adapter=find_adapter(backbone.adapter))


def with_dtype(backbone: BackboneSettings) -> BackboneSettings:
    """The settings with a compute type that is no longer `auto`; of an endpoint they stay as they are."""
    files = model_files(backbone) if backbone.dtype == "auto" else None
    if files is None or isinstance(files, EndpointModel):
        return backbone
    from featcache.backbone.load import dtype_for

    return replace(backbone, dtype=dtype_for(files, backbone))


@lru_cache(maxsize=8)
def _find_on_hub(named: BackboneSettings) -> AnyModel:
    return find_any_model(named)
