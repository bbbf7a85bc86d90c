"""The findings of an inspection of cached features, with the texts of their source."""

from __future__ import annotations

from featcache.cache.catalog import CacheFile
from featcache.cache.view_names import require_cached
from featcache.data.locate import SPLITS
from featcache.data.text_lookup import find_texts
from featcache.errors import CacheMiss
from featcache.extraction.api import find_features
from featcache.inspection.document import LISTED, Findings, findings
from featcache.inspection.inspection import InspectedSplit, inspect_splits
from featcache.inspection.label_errors import FOLDS
from featcache.inspection.neighbours import NEIGHBOURS, THRESHOLD
from featcache.runs.leaks import find_keys
from featcache.settings import Settings
from featcache.system.progress import OnProgress, ignore


def inspect(
    settings: Settings,
    view: str | None = None,
    *,
    most: int = LISTED,
    threshold: float = THRESHOLD,
    neighbours: int = NEIGHBOURS,
    folds: int = FOLDS,
    on_progress: OnProgress = ignore,
) -> Findings:
    """Likely label errors, duplicates, leakage and outliers in the cached features of the splits.

    Args:
        view: which cached view; the first of `settings.features.views` by default.
        most: rows in each list.
        threshold, neighbours, folds, on_progress: see `inspect_splits`.

    Raises:
        CacheMiss: train is not extracted for these settings.
        UsageError, HeadError: see `inspect_splits`.
    """
    asked = view or settings.features.views[0]
    require_cached(asked, "inspect")
    parts = {
        name: InspectedSplit.of(file, file.stored_view(asked)) for name, file in _files(settings).items()
    }
    hashes = {name: part.features.row_hash for name, part in parts.items()}
    found = inspect_splits(
        parts, threshold=threshold, neighbours=neighbours, folds=folds, seed=settings.seed,
        keys=find_keys(settings, hashes)[0], on_progress=on_progress,
    )  # fmt: skip
    return findings(found, find_texts(settings.data, hashes, settings.seed), most)


def _files(settings: Settings) -> dict[str, CacheFile]:
    """The cached splits; train must be there."""
    files = {"train": find_features(settings, "train")}
    for split in SPLITS[1:]:
        try:
            files[split] = find_features(settings, split)
        except CacheMiss:
            continue  # the table of splits shows that it is not there
    return files
