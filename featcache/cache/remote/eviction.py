"""Keep the mirrors of this machine within their size."""

from __future__ import annotations

from pathlib import Path

from featcache.cache.remote.listing import Listing, cache_of
from featcache.system import downloads
from featcache.system.lock import is_locked


def evict(keep: Path | None = None) -> list[Path]:
    """Remove files that can be fetched again, the least recently used first, see `downloads.evict`.

    Args:
        keep: this file is never removed.

    Returns:
        The removed files.
    """
    return downloads.evict(keep, lambda path: downloads.is_data(path) or _can_be_fetched(path))


def _can_be_fetched(path: Path) -> bool:
    caches = downloads.mirror_root() / "cache"
    if not path.is_relative_to(caches):
        return False
    key = path.relative_to(caches).parts[0]
    return Listing(caches / key).has(path) and not is_locked(cache_of(path))
