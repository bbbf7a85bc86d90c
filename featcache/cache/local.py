"""The files of a cache in a folder of this machine; `remote.mirror` extends it to caches in a store."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.cache.sealed_file import SealedFile
from featcache.errors import CacheError


@dataclass(frozen=True)
class FileFacts:
    """What is known of a cache file without opening it.

    Attributes:
        place: for messages: its URL if a store has it, else its path.
        bytes: of the file; if only a store has it, with its shards.
        modified: when the file was written, seconds since the epoch.
    """

    place: str
    bytes: int
    modified: float


class LocalFiles:
    """The files of a cache in a folder of this machine. Every path is that of a file on this machine."""

    def elsewhere(self, split: str = "*") -> Sequence[Path]:
        """The local paths of the files of `split` that only a store has."""
        return ()

    def open(self, path: Path) -> SealedFile:
        """The sealed file `path`, or the manifest of a sharded one.

        Raises:
            CacheError, CorruptCache: see `SealedFile`; or `path` is no regular file.
        """
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise CacheError(
                f"cannot read {path}: {error.strerror or error}", hint="who may read it? ls -l shows it"
            ) from error
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
            raise CacheError(f"{path} is no cache file but {what}", hint="move it out of the cache folder")
        return SealedFile(path)

    def fetch_shard(self, path: Path, *, again: bool = False) -> bool:
        """Fetch the shard `path` if it is not on this machine; False if no store has it.

        Args:
            again: fetch the shard even if it is on this machine.
        """
        return False

    def shards_elsewhere(self, path: Path) -> Sequence[str]:
        """Names of the shards that a store has of the cache file `path`."""
        return ()

    def push(self, path: Path, *, replace: bool = False) -> None:
        """Bring a sealed cache file and its record to the store, if there is one.

        Args:
            replace: replace the file of the store. Otherwise a file of the store stays: it has the same
                features, and this machine takes it too.

        Raises:
            CacheError: the store refuses or cannot be reached. The file stays, and the same call continues.
        """

    def remove_elsewhere(self, path: Path) -> None:
        """Remove a cache file with its shards and its record from the store, if there is one.

        Raises:
            CacheError: the store refuses or cannot be reached.
        """

    def facts(self, path: Path) -> FileFacts:
        """What is known of a cache file.

        Raises:
            OSError: there is no such file.
        """
        found = path.stat()
        return FileFacts(str(path), found.st_size, found.st_mtime)
