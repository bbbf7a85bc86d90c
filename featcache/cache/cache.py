"""The object with which all code reads and writes cached features."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from featcache.cache import shards
from featcache.cache.catalog import STATES, CacheFile, is_states
from featcache.cache.description import FileDescription
from featcache.cache.local import FileFacts, LocalFiles
from featcache.cache.record import record_path
from featcache.cache.remote.mirror import Mirror
from featcache.cache.staging import discard_work, partial_folder
from featcache.cache.writing.cache_writer import write_cache
from featcache.errors import CacheError
from featcache.fingerprint import Difference, Request, canonical, differences
from featcache.system.durable import TEMPORARY, explained, remove_temporaries
from featcache.system.lock import discard_lock, locked
from featcache.system.stores import is_remote


@dataclass(frozen=True)
class Cache:
    """A folder of sealed files on this machine, or a store with a folder that mirrors it.

    `FOLDER/<dataset>/<model>/<split>-<fingerprint, 12 hex>.h5` holds features. Beside each file is its
    record, see `record.CacheRecord`.

    Attributes:
        folder: on this machine; need not exist.
        backend: what differs between a folder and a store.
    """

    folder: Path
    backend: LocalFiles = field(default_factory=LocalFiles)

    @classmethod
    def open(cls, cache_dir: str | Path) -> Cache:
        """The cache at a path or URL.

        Raises:
            UsageError: an unknown kind of URL, one that cannot be written to, or a driver is not installed.
            CacheError: the driver cannot begin.
        """
        if isinstance(cache_dir, Path) or not is_remote(cache_dir):
            return cls(Path(cache_dir))
        mirror = Mirror.at(cache_dir)
        return cls(mirror.folder, mirror)

    def path(self, dataset: str, model: str, split: str, fingerprint: str) -> Path:
        """Where the cache file of a split is."""
        return self.folder / slug(dataset) / slug(model) / f"{split}-{fingerprint[:12]}.h5"

    # -- reading ----------------------------------------------------------------------------------

    def paths(self, split: str = "*") -> list[Path]:
        """Paths of all cache files, whole or damaged, newest first; those of a store whether fetched or not.

        Raises:
            CacheError: the store cannot be asked.
        """
        elsewhere = self.backend.elsewhere(split)  # first: what is gone from the store is removed here
        found = {*elsewhere, *self.folder.glob(f"*/*/{split}-*.h5")}
        named = (path for path in found if not path.name.startswith(TEMPORARY) and not shards.owner_of(path))
        return sorted(named, key=self._age)

    def states_paths(self) -> list[Path]:
        """Paths of all files of token states, whole or damaged, newest first."""
        return sorted(filter(is_states, self.folder.glob(f"*/*/{STATES}/*.h5")), key=self._age)

    def file(self, path: Path) -> CacheFile:
        """The cache file at `path`, one of `paths`.

        Raises:
            CorruptCache, CacheError: see `CacheFile`.
        """
        return CacheFile(path, self.backend)

    def files(self, split: str = "*") -> Iterator[CacheFile]:
        """All cache files that can be opened, newest first and one at a time; damaged ones are left out."""
        for path in self.paths(split):
            try:
                file = self.file(path)
            except CacheError:
                continue
            yield file

    def damaged(self, split: str) -> list[CacheError]:
        """The error of each cache file of `split` that cannot be opened, newest first."""
        errors = []
        for path in self.paths(split):
            try:
                self.file(path)
            except CacheError as error:
                errors.append(error)
        return errors

    def find(self, request: Request, views: set[str]) -> CacheFile | None:
        """The file that answered the same request before and has all `views`, as they were asked for."""
        wanted = canonical(request.key())
        for file in self.files(request.split):
            for known in file.record.requests:
                if canonical(known.key()) == wanted and views <= set(known.views):
                    return file
        return None

    def nearest(self, request: Request) -> tuple[CacheFile, list[Difference]] | None:
        """The file whose requests differ from `request` in the fewest fields, and these fields."""
        best: tuple[CacheFile, list[Difference]] | None = None
        for file in self.files(request.split):
            for known in file.record.requests:
                found = differences(known.key(), request.key())
                if best is None or len(found) < len(best[1]):
                    best = (file, found)
        return best

    def imported(self, model: str) -> dict[str, CacheFile]:
        """The files of imported vectors by split, the newest of each; `model`: `vectors:NAME`."""
        found: dict[str, CacheFile] = {}
        for path in self.paths():
            if path.parent.name != slug(model):
                continue
            with suppress(CacheError):
                file = self.file(path)
                if file.sealed.description.model == model:
                    found.setdefault(file.split, file)
        return found

    def facts(self, path: Path) -> FileFacts:
        """What is known of a cache file without opening it.

        Raises:
            OSError: there is no such file.
        """
        return self.backend.facts(path)

    # -- writing ----------------------------------------------------------------------------------

    def write(
        self,
        path: Path,
        description: FileDescription,
        rows: int,
        columns: shards.Columns,
        shard_size: int,
        *,
        replace: bool = False,
    ) -> bool:
        """Write a cache file on this machine, see `write_cache`; `push` brings it to the store."""
        taken = self.backend.shards_elsewhere(path)
        return write_cache(path, description, rows, columns, shard_size, replace=replace, taken=taken)

    def push(self, path: Path, *, replace: bool = False) -> None:
        """Bring a cache file and its record to the store, if there is one; see `LocalFiles.push`."""
        self.backend.push(path, replace=replace)

    def remove(self, path: Path) -> None:
        """Remove a cache file with its record and its unfinished work, in the store too.

        A reader that has the file open keeps reading: its memory map outlives the name.

        Raises:
            CacheError: a writer is at work on the file, or the file system or the store refuses.
        """
        with locked(path), explained(path):
            self.backend.remove_elsewhere(path)
            for left in (path, record_path(path), *shards.shard_paths(path)):  # shards without it are litter
                left.unlink(missing_ok=True)
            remove_temporaries(path)
            discard_work(partial_folder(path))
            discard_lock(path)

    def _age(self, path: Path) -> float:
        """Sort key: newest first; a file that is just being removed comes last."""
        try:
            return -self.backend.facts(path).modified
        except OSError:
            return 0.0


def slug(name: str) -> str:
    """A folder name for a hub id or a path: `lansinuote/ChnSentiCorp` -> `lansinuote--ChnSentiCorp`."""
    parts = [part for part in re.split(r"[/\\]+", name.strip("./\\")) if part not in ("", ".", "..")]
    kept = parts[-2:] if len(parts) == 2 and not name.startswith((".", "/", "~")) else parts[-1:]
    return re.sub(r"[^\w.\-]+", "_", "--".join(kept)) or "unnamed"
