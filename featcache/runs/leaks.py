"""Finds the rows of validation and test that leak: by keys in the cache, by texts, or by row hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.catalog import Features
from featcache.cache.text_keys import read_text_keys, write_text_keys
from featcache.data.hub_dataset import commit_on_disk
from featcache.data.locate import SPLITS, locate
from featcache.data.split import Split, load_splits
from featcache.data.text_lookup import text_keys
from featcache.errors import FeatcacheError
from featcache.evaluation.leaks import EXACT, NORMALISED, Leaks
from featcache.fingerprint import row_keys
from featcache.settings import DataSettings, Settings


def find_leaks(
    settings: Settings, hashes: Mapping[str, np.ndarray], splits: Mapping[str, Split] | None = None
) -> Leaks:
    """The rows whose text an earlier split has; arguments as of `find_keys`."""
    return Leaks.of(*find_keys(settings, hashes, splits))


def find_keys(
    settings: Settings, hashes: Mapping[str, np.ndarray], splits: Mapping[str, Split] | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """Keys by which the rows of splits are compared, uint64 `[N]` by split, and the rule that they follow.

    The texts are read once, where they are on this disk; their keys are kept in the cache. Where neither is
    there, the keys are those of the hashes of the exact texts.

    Args:
        hashes: row hashes uint8 `[N, 32]` by split.
        splits: the rows with their texts, where they are loaded; by default they are read from
            `settings.data`.
    """
    folder = Cache.open(settings.paths.cache_dir).folder
    rows = {split: np.asarray(hashes[split]) for split in SPLITS if split in hashes}
    keys = {split: read_text_keys(folder, one) for split, one in rows.items()}
    missing = tuple(split for split, one in keys.items() if one is None)
    loaded = splits or (_load(settings.data, missing, settings.seed) if missing else {})
    for split in missing:
        keys[split] = made = text_keys(loaded[split], rows[split]) if split in loaded else None
        if made is not None:
            write_text_keys(folder, rows[split], made)
    known = {split: one for split, one in keys.items() if one is not None}
    if len(known) == len(rows):
        return known, NORMALISED
    return {split: row_keys(one) for split, one in rows.items()}, EXACT


def clean_features(features: Features, leaks: Leaks) -> Features:
    """The rows of a split that do not leak; all of them where no row leaks, or every one."""
    rows = leaks.clean(features.split)
    if rows is None:
        return features
    x, y, hashes = (part[rows] for part in (features.x, features.y, features.row_hash))
    return replace(features, x=x, y=y, row_hash=hashes)


def _load(data: DataSettings, names: tuple[str, ...], seed: int) -> Mapping[str, Split]:
    """The splits of a source on this disk; empty where it is elsewhere, or cannot be read."""
    try:
        location = locate(data)
        if location.hub_id:  # a head is trained on what is cached: nothing is downloaded for it
            commit = commit_on_disk(location.hub_id, location.config, data.dataset_revision)
            if commit is None:
                return {}
            data = replace(data, dataset_revision=commit)
        return load_splits(data, names, seed=seed)
    except FeatcacheError:
        return {}
