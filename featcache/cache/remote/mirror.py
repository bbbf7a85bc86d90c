"""The mirror of a cache in a store: a folder on this machine that follows the store and fetches what is read.

A store holds the same files as a cache folder. This machine has the folder `ROOT/cache/KEY`, in which
extraction works as in any cache folder, and the listing of the store. Small columns are read by range. When
features are needed, the whole file is fetched; it gets its name only after all its checksums were checked.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.local import FileFacts, LocalFiles
from featcache.cache.record import CacheRecord, parse_record, read_record, record_path, write_record
from featcache.cache.remote.eviction import evict
from featcache.cache.remote.listing import (
    Listing,
    ListingEntry,
    cache_of,
    described,
    is_ours,
    is_out_of_reach,
    read_column,
    seal_digest,
    shard_names,
)
from featcache.cache.seal import HINT
from featcache.cache.sealed_file import SealedFile
from featcache.cache.shards import shard_entries
from featcache.errors import CacheError, CorruptCache, FeatcacheError, UsageError
from featcache.system.downloads import entry_lock, key_of, mirror_root, used
from featcache.system.durable import explained, publish, temporary_beside
from featcache.system.lock import is_locked
from featcache.system.stores import Remote, modified, opened, shown, stamp

REFRESH_EVERY = 2.0  # seconds until the store is listed again
READERS = 8  # descriptions that are read at a time
TRIES = 2  # times that a file is fetched before it counts as damaged
LONGEST_RECORD = 16 << 20


class Mirror(LocalFiles):
    """The files of a cache at a URL.

    Args:
        remote: the cache in the store.
        folder: `ROOT/cache/KEY` on this machine; need not exist.
    """

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.remote = remote
        self.folder = folder
        self.listing = Listing(folder)
        self._looked = -REFRESH_EVERY

    @classmethod
    def at(cls, url: str) -> Mirror:
        """The mirror of the cache at `url`.

        Raises:
            UsageError: an unknown kind of URL, one that cannot be written to, or a driver is not installed.
            CacheError: the driver cannot be set up.
        """
        if url.lower().startswith(("http://", "https://")):
            raise UsageError(
                f"--cache-dir {shown(url)}: a web server keeps no cache", hint="s3://, gs://, ..."
            )
        return cls(opened(url), mirror_root() / "cache" / key_of(url.rstrip("/")))

    def entry(self, path: Path) -> Remote:
        """The file of the store that belongs to `path`, a cache file or a record."""
        return self.remote.child(path.relative_to(self.folder).as_posix())

    def _known(self, path: Path) -> ListingEntry | None:
        """The listing entry of `path`; None for a file that is not of this cache."""
        return self.listing.read(path) if path.is_relative_to(self.folder) else None

    # -- reading ------------------------------------------------------------------------------------

    def elsewhere(self, split: str = "*") -> Sequence[Path]:
        self.refresh()
        paths = self.listing.paths()
        return [path for path in paths if fnmatchcase(path.name, f"{split}-*.h5") and not path.exists()]

    def open(self, path: Path) -> SealedFile:
        entry = self._known(path)
        return super().open(path) if entry is None else MirroredFile(self, path, entry)

    def fetch_shard(self, path: Path, *, again: bool = False) -> bool:
        if not path.is_relative_to(self.folder) or not self.listing.has(path):
            return False
        self.fetch(path, again=again)
        return True

    def shards_elsewhere(self, path: Path) -> Sequence[str]:
        self.refresh(now=True)
        return shard_names(self.listing.read(path), path)

    def facts(self, path: Path) -> FileFacts:
        entry = self._known(path)
        place = str(path) if entry is None else shown(self.entry(path).url)
        if entry is None or path.exists():
            return replace(super().facts(path), place=place)
        return FileFacts(place, entry.bytes + sum(each.bytes for each in entry.shards(path)), entry.modified)

    # -- following ----------------------------------------------------------------------------------

    def refresh(self, *, now: bool = False) -> None:
        """List the store, and update the listing.

        A new or changed record is fetched. A file that was replaced in the store, or removed from it, is
        removed on this machine too. If the store lists no file at all (a disk is not mounted), nothing is
        removed.

        Args:
            now: also if the last listing is less than `REFRESH_EVERY` seconds ago.

        Raises:
            CacheError: the store cannot be reached.
        """
        if not now and time.monotonic() - self._looked < REFRESH_EVERY:
            return
        there = {name: info for name, info in self.remote.listing().items() if is_ours(name)}
        files = {self.folder / name: info for name, info in there.items() if name.endswith(".h5")}
        for path in self.listing.paths() if there else ():
            if path not in files:
                self._forget(path)
        changed = []
        for path, info in files.items():
            entry = self.listing.read(path)
            if entry is None or entry.stamp != stamp(info):
                if entry is not None:
                    self._forget(path)
                changed.append(path)
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda path: self._note(path, files[path]), changed))
        for path in files:
            record = there.get(record_path(path).relative_to(self.folder).as_posix())
            if record is not None:
                self._follow_record(path, record)
        self._looked = time.monotonic()

    def _note(self, path: Path, info: dict[str, Any]) -> None:
        """Write the listing entry of a file of the store, with its damage if it has any."""
        entry = ListingEntry(stamp(info), int(info["size"]), modified(info))
        remote = self.entry(path)
        try:
            entry = described(entry, remote)
        except CacheError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return  # removed since the store was listed
            if is_out_of_reach(error):
                raise
            entry = replace(entry, damage=error.what, corrupt=isinstance(error, CorruptCache))
        self.listing.write(path, entry)

    def _forget(self, path: Path) -> None:
        """Remove a file from this machine that the store no longer has, unless a process is writing it."""
        with entry_lock(path):
            if is_locked(path):
                return
            shards = path.parent.glob(f"{glob.escape(path.stem)}.shard-*.h5")
            for one in (self.listing.entry_path(path), path, record_path(path), *shards):
                one.unlink(missing_ok=True)

    def _follow_record(self, path: Path, info: dict[str, Any]) -> None:
        """Merge the record of the store into the one of this machine."""
        entry = self.listing.read(path)
        if entry is None or entry.meta is None or entry.record == stamp(info):
            return
        if info["size"] <= LONGEST_RECORD:
            try:
                theirs = parse_record(self.entry(record_path(path)).read(), entry.fingerprint)
            except CacheError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    return  # removed since the store was listed
                raise
            ours = read_record(path, entry.fingerprint)
            if theirs and ours.merged(theirs) != ours:
                write_record(path, ours.merged(theirs))
        self.listing.write(path, replace(entry, record=stamp(info)))

    # -- fetching -----------------------------------------------------------------------------------

    def fetch(self, path: Path, *, again: bool = False) -> SealedFile:
        """The file of the store as a local file, fetched if this machine does not have it.

        Args:
            again: fetch it even if this machine has it.

        Raises:
            CorruptCache: it arrived damaged twice.
            CacheError: the store cannot be reached or no longer has the file, or the disk is full.
        """
        with entry_lock(path):
            missing = again or not path.exists()
            if missing:
                self._fetch(path)
            try:
                sealed = SealedFile(path)
            except CacheError:  # the copy on this disk is damaged
                if missing:
                    raise
                self._fetch(path)
                sealed = SealedFile(path)
            used(path)
        if missing:
            evict(keep=path)
        return sealed

    def _fetch(self, path: Path) -> None:
        remote, temporary = self.entry(path), temporary_beside(path)
        try:
            for attempt in range(TRIES):
                try:
                    remote.get(temporary)
                    _check(temporary, path)
                    break
                except CorruptCache as error:
                    if attempt + 1 == TRIES:
                        what = error.what.replace(str(temporary), shown(remote.url))
                        raise CorruptCache(f"{what} (fetched {TRIES} times)", hint=HINT) from error
            publish(temporary, path, replace=True)
            # With the time of the store's file, files sort in the same order, fetched or not.
            entry, now = self.listing.read(path), time.time()
            os.utime(path, (now, (entry.modified if entry else 0) or now))
        finally:
            temporary.unlink(missing_ok=True)

    # -- pushing and removing -----------------------------------------------------------------------

    def push(self, path: Path, *, replace: bool = False) -> None:
        remote, known = self.entry(path), self.listing.read(path)
        if replace or known is None:
            if replace or remote.info() is None:
                self._push_shards(path)  # first, because the manifest completes the cache
            if remote.put(path, replace=replace):
                self._push_shards(path)  # those that another machine replaced in the meantime
                self._remove_shards(path, shard_names(known, path))
            else:
                self._take_theirs(path)
            info = remote.info()
            if info is None:
                raise CacheError(
                    f"{shown(remote.url)} was removed just after it was written",
                    hint="does another program clean the store? run it again",
                )
            self._note(path, info)
        # The record only saves time: a failed push of it is not an error.
        with suppress(CacheError):
            self._push_record(path)

    def _push_shards(self, path: Path) -> None:
        """Push the shards that the store does not have, or has with another seal."""
        for entry in shard_entries(SealedFile(path).description, path):
            shard = path.with_name(entry.name)
            if seal_digest(self.entry(shard)) != entry.seal:
                self.entry(shard).put(shard, replace=True)

    def _remove_shards(self, path: Path, before: list[str]) -> None:
        """Remove the shards `before` from the store that the manifest no longer lists."""
        kept = {entry.name for entry in shard_entries(SealedFile(path).description, path)}
        for name in before:
            if name not in kept:
                self.entry(path.with_name(name)).remove()

    def _take_theirs(self, path: Path) -> None:
        """Fetch the file that the store has already; if it is damaged, replace it by this one."""
        try:
            self.fetch(path, again=True)
        except CorruptCache:
            self.entry(path).put(path, replace=True)

    def _push_record(self, path: Path) -> None:
        """Merge the record of this machine into the one of the store."""
        entry, remote = self.listing.read(path), self.entry(record_path(path))
        if entry is None or not entry.fingerprint:
            return
        there = remote.info()
        theirs = parse_record(remote.read(), entry.fingerprint) if there is not None else None
        theirs = theirs or CacheRecord(entry.fingerprint)
        ours = read_record(path, entry.fingerprint).merged(theirs)
        if ours != theirs:
            remote.write(ours.to_bytes())
        info = remote.info()
        if info is not None:
            self.listing.write(path, replace(entry, record=stamp(info)))

    def remove_elsewhere(self, path: Path) -> None:
        there = (self.folder / name for name in self.remote.listing())
        shards = [one for one in there if cache_of(one) == path != one]  # also those that no manifest lists
        for one in (path, record_path(path), *shards):
            self.entry(one).remove()
        with entry_lock(path), explained(path):
            self.listing.entry_path(path).unlink(missing_ok=True)


class MirroredFile(SealedFile):
    """A cache file of a store, described by its listing entry; its features are fetched when they are read.

    Raises:
        CorruptCache, CacheError: by its entry the file is damaged, or is not a cache file.
    """

    def __init__(self, mirror: Mirror, path: Path, entry: ListingEntry) -> None:
        if entry.meta is None or entry.columns is None or entry.digest is None:
            kind = CorruptCache if entry.corrupt else CacheError
            raise kind(entry.damage or f"{path} is not described", hint=HINT)
        self.path, self.nbytes, self.description, self.digest = path, entry.bytes, entry.meta, entry.digest
        self._entries = entry.columns
        self._mirror = mirror
        self._whole: SealedFile | None = None
        self._small: dict[str, np.ndarray] = {}

    def column(self, name: str) -> np.ndarray:
        """A column, read-only and checked; a column of a view fetches the file.

        Raises:
            CorruptCache: the column is damaged in the store too.
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
        except CorruptCache:  # the copy on this disk is damaged
            self._whole = self._mirror.fetch(self.path, again=True)
            return self._whole.column(name)

    def verify(self) -> int:
        """Fetch the file if needed and check every column; returns the number of bytes checked."""
        return self._here().verify()

    def _here(self) -> SealedFile:
        if self._whole is None:
            self._whole = self._mirror.fetch(self.path)
        return self._whole


def _check(temporary: Path, path: Path) -> None:
    """Raise CorruptCache unless every checksum is right and the file is the one of its name."""
    try:
        sealed = SealedFile(temporary)
        sealed.verify()
    except FeatcacheError as error:
        raise CorruptCache(error.what, hint="remove it from the store, and extract again") from error
    if not cache_of(path).stem.endswith(f"-{sealed.description.fingerprint[:12]}"):
        raise CorruptCache(
            f"{temporary} is another cache file than its name says",
            hint="remove it from the store, and extract again",
        )
