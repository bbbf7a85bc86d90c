"""A cache file of a store, read as a sealed file: its bytes come when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.cache.remote.listing import HINT, read_column
from featcache.errors import CacheError, CorruptCache
from featcache.cache.sealed_file import SealedFile

if TYPE_CHECKING:
    from featcache.cache.remote.mirror import Mirror


class MirroredFile(SealedFile):
    """A cache file of a store: described by its card, its rows fetched when they are asked for.

    Raises:
        CorruptCache, CacheError: its card says that it is damaged, or no cache file.
    """

    def __init__(self, mirror: Mirror, path: Path, card: dict[str, Any]) -> None:
        if "damage" in card:
            kind = CorruptCache if card["corrupt"] else CacheError
            raise kind(str(card["damage"]), hint=HINT)
        self.path = path
        self.nbytes = int(card["bytes"])
        self.meta = dict(card["meta"])
        self.digest = str(card["digest"])
        self._entries = card["columns"]
        self._mirror = mirror
        self._whole: SealedFile | None = None
        self._small: dict[str, np.ndarray] = {}

    def column(self, name: str) -> np.ndarray:
        """A column, read-only, after its checksums were checked; that of a view fetches the file.

        Raises:
            CorruptCache: it is damaged in the store, too.
            CacheError: the store cannot be reached.
            KeyError: no such column.
        """
        entry = self._entries[name]
        if self._whole is None and not name.startswith("views/") and not self.path.exists():
            if name not in self._small:
                self._small[name] = read_column(self._mirror.entry(self.path), name, entry)
            return self._small[name]
        try:
            return self._here().column(name)
        except CorruptCache:  # the copy on this disk went bad
            self._whole = self._mirror.fetch(self.path, anew=True)
            return self._whole.column(name)

    def verify(self) -> int:
        """Check every column, after fetching the file where it is not here; the bytes checked."""
        return self._here().verify()

    def _here(self) -> SealedFile:
        if self._whole is None:
            self._whole = self._mirror.fetch(self.path)
        return self._whole
