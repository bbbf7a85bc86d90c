"""Where the files of a cache are: in a folder of this machine. A store adds to it, see `remote.mirror`."""

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
        place: where people find the file: its URL where a store has it, else its path.
        bytes: of the file and, where only a store has it, of its shards.
        modified: when the file was written, seconds since the epoch.
    """

    place: str
    bytes: int
    modified: float


class LocalFiles:
    """The files of a cache in a folder of this machine. Every path is that of a file on this machine."""

    def elsewhere(self, split: str = "*") -> Sequence[Path]:
        """Where the files of `split` will be that a store has and this machine has not."""
        return ()

    def open(self, path: Path) -> SealedFile:
        """The sealed file `path`, or the manifest of a sharded one.

        Raises:
            CacheError, CorruptCache: see `SealedFile`; or `path` is no regular file.
        """
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror or error}") from error
        if not stat.S_ISREG(mode):  # to open a pipe is to wait for ever
            what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
            raise CacheError(f"{path} is no cache file but {what}")
        return SealedFile(path)

    def fetch_shard(self, path: Path, *, anew: bool = False) -> bool:
        """Have the shard `path` of a store on this machine; False where no store has it.

        Args:
            anew: fetch the shard even if it is on this machine.
        """
        return False

    def shards_elsewhere(self, path: Path) -> Sequence[str]:
        """Names of the shards that a store has of the cache file `path`."""
        return ()

    def push(self, path: Path, *, replace: bool = False) -> None:
        """Bring a sealed cache file and its record to the store, if there is one.

        Args:
            replace: the file takes the place of the store's. Without it, a file of the store stays: it has
                the same features, and this machine takes it as well.

        Raises:
            CacheError: the store refuses or cannot be reached. The file stays, and the same call goes on.
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
