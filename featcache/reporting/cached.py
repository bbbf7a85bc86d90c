"""What is still there of the features and texts that a run was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.data.locate import SPLITS
from featcache.data.text_lookup import RowTexts, find_texts, foreign_place
from featcache.errors import CacheMiss, FeatcacheError, HeadError
from featcache.fingerprint import fingerprint
from featcache.inspection.inspection import InspectedSplit, Inspection, inspect_splits
from featcache.runs.inputs.joined_files import open_reference
from featcache.runs.record import FrozenRows
from featcache.runs.run import Run
from featcache.settings import DataSettings, Settings
from featcache.system.progress import OnProgress
from featcache.system.stores import is_remote


@dataclass(frozen=True)
class CachedFeatures:
    """What the cache still has of the features that a run was trained on.

    Attributes:
        split: the split that is reported on.
        own: that split, its rows in the order of the predictions; None if it is not cached.
        hashes: row hashes uint8 `[N, 32]` by split, also of the predictions.
    """

    files: Mapping[str, CacheFile]
    splits: Mapping[str, InspectedSplit]
    split: str
    own: InspectedSplit | None
    hashes: Mapping[str, np.ndarray]


def cached_features(
    run: Run, row_hash: np.ndarray, split: str, mine: Settings, notes: list[str]
) -> CachedFeatures:
    """What is cached of the run's features; what is missing is a line in `notes`.

    Args:
        row_hash: uint8 `[N, 32]`, of the predictions of `split`.
        mine: settings of this user.
    """
    files = _files(run, mine, notes)
    splits = {name: InspectedSplit.of(file, run.record.cached_view) for name, file in files.items()}
    own = splits.get(split)
    if own and not np.array_equal(own.features.row_hash, row_hash):
        notes.append(f"{files.pop(split).path.name} has other rows than the run's predictions")
        own = None
        del splits[split]
    if files and run.record.finetune:
        notes.append("the map and the inspection are of the features before fine-tuning")
    hashes = {name: one.features.row_hash for name, one in splits.items()}
    return CachedFeatures(files, splits, split, own, {**hashes, split: row_hash})


def _files(run: Run, mine: Settings, notes: list[str]) -> dict[str, CacheFile]:
    """The cache files that the run was trained on, as far as they are there unchanged.

    For a fine-tuned run, those of its frozen backbone: the features of the tuned one were never cached.
    """
    caches, frozen = run.record.caches, run.record.frozen
    found = dict[str, CacheFile]()
    for split in (name for name in SPLITS if name in (frozen.rows if frozen else caches)):
        try:
            if frozen:
                if is_remote(frozen.cache_dir) and frozen.cache_dir != mine.paths.cache_dir:
                    raise CacheMiss(
                        foreign_place(frozen.cache_dir, "cache_dir"),
                        hint="name it in featcache.toml, too, if you trust it",
                    )
                found[split] = _frozen_features(frozen, split, run.record.cached_view)
            else:
                found[split] = open_reference(caches[split])
        except FeatcacheError as error:
            notes.append(f"{split} features are not shown: {error.what}")
    return found


def _frozen_features(frozen: FrozenRows, split: str, view: str) -> CacheFile:
    """The features of the rows of a fine-tuned run from its frozen backbone; CacheMiss if not cached."""
    for file in Cache.open(frozen.cache_dir).files(split):
        same_rows = file.document.rows.chain == frozen.rows[split]
        same_encoder = fingerprint(file.document.encoder.to_json()) == frozen.encoder
        if same_rows and same_encoder and view in file.views:
            return file
    raise CacheMiss(
        f"{view} of the frozen backbone is not in the cache (featcache extract makes it)",
        hint="featcache extract makes it",
    )


def texts_of_rows(run: Run, hashes: Mapping[str, np.ndarray], mine: Settings, notes: list[str]) -> RowTexts:
    """The texts of rows by their hashes uint8 `[N, 32]`, by split."""
    data = run.record.data or DataSettings()
    texts = find_texts(data, hashes, run.record.seed, own=mine.data)
    if texts.reason:
        notes.append(f"texts are not shown: {texts.reason}")
    return texts


def inspected(
    cached: CachedFeatures, run: Run, notes: list[str], on_progress: OnProgress
) -> Inspection | None:
    """The inspection; None, with a note, if it cannot be made."""
    if "train" not in cached.splits:
        notes.append("the data were not inspected: the train features are not in the cache")
        return None
    try:
        return inspect_splits(cached.splits, seed=run.record.seed, on_progress=on_progress)
    except HeadError as error:
        notes.append(f"the data were not inspected: {error.what}")
        return None
