"""A cache at a URL: a folder on this machine that follows it, and fetches a file when its rows are asked for.

The store holds the very files that a cache folder holds. Here are `cache/KEY`, in which extraction works as
in any cache folder, and `cards/KEY`, which say what the store has. What a card can answer it does; of small
columns only their own bytes are read. The first time that features are asked for, the file is fetched whole,
every checksum of it is checked, and only then does it get its name.
"""

from __future__ import annotations

import glob
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from featcache.cache.remote.listing import (
    HINT,
    cache_of,
    card_path,
    description,
    in_store,
    is_ours,
    read_card,
    seal_digest,
    shard_names,
)
from featcache.errors import CacheError, CorruptCache, FeatcacheError, UsageError
from featcache.cache.remote.eviction import evict
from featcache.system.downloads import entry_lock, key_of, mirror_root, used
from featcache.system.durable import explained, publish, temporary_beside, write_file
from featcache.system.lock import is_locked
from featcache.cache.remote.mirrored import MirroredFile
from featcache.cache.record import CacheRecord, parse_record, read_record, record_path, write_record
from featcache.system.stores import Remote, is_remote, modified, opened, shown, stamp
from featcache.cache.sealed_file import SealedFile

REFRESH_EVERY = 2.0  # seconds for which a listing of the store is taken to be what is there
READERS = 8  # descriptions that are read at a time
TRIES = 2  # times that a file is fetched before it is said to be damaged
LONGEST_RECORD = 16 << 20

_MIRRORS: dict[Path, Mirror] = {}


def cache_folder(cache_dir: str) -> Path:
    """The folder of this machine to work in for `cache_dir`, a path or a URL.

    For a URL it is a mirror: the functions below, and `store`, then know it by its folder.

    Raises:
        UsageError: an unknown kind of URL, or one that cannot be written to; no driver for it is installed.
        CacheError: the driver cannot begin.
    """
    if not is_remote(cache_dir):
        return Path(cache_dir)
    if cache_dir.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"--cache-dir {shown(cache_dir)}: a web server keeps no cache", hint="s3://, gs://, ..."
        )
    folder = mirror_root() / "cache" / key_of(cache_dir.rstrip("/"))
    if folder not in _MIRRORS:
        _MIRRORS[folder] = Mirror(opened(cache_dir), folder)
    return folder


def known(cache_dir: Path, split: str = "*") -> list[Path]:
    """Where the files of `split` that the store has and this machine has not would lie; of a folder, none.

    Raises:
        CacheError: the store cannot be asked.
    """
    mirror = _MIRRORS.get(cache_dir)
    if mirror is None:
        return []
    mirror.refresh()
    return [path for path in mirror.paths() if fnmatchcase(path.name, f"{split}-*.h5") and not path.exists()]


def open_sealed(path: Path) -> SealedFile | None:
    """The cache file `path` of a mirror; None for one that no store has.

    Raises:
        CacheError, CorruptCache: what the store has under that name is damaged or no cache file.
    """
    mirror = _mirror_of(path)
    card = mirror.card(path) if mirror else None
    return MirroredFile(mirror, path, card) if mirror and card else None


def fetch_shard(path: Path, *, anew: bool = False) -> bool:
    """Have a shard of a cache file of a store on this machine; False where no store has it.

    Args:
        anew: fetch it even if it is here.

    Raises:
        CorruptCache, CacheError: as for `Mirror.fetch`.
    """
    mirror = _mirror_of(path)
    if mirror is None or not in_store(path):
        return False
    mirror.fetch(path, anew=anew)
    return True


def push(path: Path, *, replace: bool = False) -> None:
    """Bring a sealed cache file and its record to the store; nothing happens to a file of a plain folder.

    Args:
        replace: the file was made anew and takes the place of the store's. Without it, a file that is there
            stays; the same features are in it, and this machine takes it as well.

    Raises:
        CacheError: the store refuses or cannot be reached; the file stays here, and the same call goes on.
    """
    mirror = _mirror_of(path)
    if mirror is not None:
        mirror.push(path, replace=replace)


def shards_of(path: Path) -> list[str]:
    """Names of the shards that the store has of the cache file `path`; none of a plain folder.

    Raises:
        CacheError: the store cannot be asked.
    """
    mirror = _mirror_of(path)
    if mirror is None:
        return []
    mirror.refresh(now=True)
    return shard_names(mirror.card(path) or {}, path)


def remove(path: Path) -> None:
    """Remove a cache file with its record from the store; nothing happens to a file of a plain folder.

    Raises:
        CacheError: the store refuses or cannot be reached.
    """
    mirror = _mirror_of(path)
    if mirror is not None:
        mirror.remove(path)


def facts(path: Path) -> tuple[int, float]:
    """Bytes of a cache file, here or in the store, and when it was written, seconds since the epoch.

    Raises:
        OSError: there is none.
    """
    card = None if path.exists() else read_card(path) if _mirror_of(path) else None
    if card is not None:
        shards = card.get("meta", {}).get("shards", [])
        return int(card["bytes"]) + sum(each["bytes"] for each in shards), float(card["modified"])
    stat = path.stat()
    return stat.st_size, stat.st_mtime


def place(path: Path) -> str:
    """Where people find a cache file: its URL where a store has it, else its path."""
    mirror = _mirror_of(path)
    return shown(mirror.entry(path).url) if mirror and mirror.card(path) else str(path)


def _mirror_of(path: Path) -> Mirror | None:
    return _MIRRORS.get(path.parents[2]) if _MIRRORS and len(path.parents) > 2 else None


class Mirror:
    """A folder that follows a cache at a URL.

    Args:
        remote: the cache.
        folder: `ROOT/cache/KEY`; need not be there.
    """

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.remote = remote
        self.folder = folder
        self.cards = folder.parents[1] / "cards" / folder.name
        self._looked = -REFRESH_EVERY

    def paths(self) -> list[Path]:
        """Where the files that the store had at the last look lie here, fetched or not."""
        cards = self.cards.glob("*/*/*.json")
        return [self.folder / card.relative_to(self.cards).with_suffix(".h5") for card in cards]

    def card(self, path: Path) -> dict[str, Any] | None:
        """What the store had under the name of `path` at the last look; None: nothing."""
        return read_card(path)

    def entry(self, path: Path) -> Remote:
        """The file of the store that belongs to `path`, a cache file or a record."""
        return self.remote.child(path.relative_to(self.folder).as_posix())

    # -- following ----------------------------------------------------------------------------------

    def refresh(self, *, now: bool = False) -> None:
        """Look at what the store has, and note it in the cards.

        A record that is new or was changed is fetched. What was replaced in the store, or removed from it, is
        removed here too. A store that shows nothing at all (a disk that is not mounted) is not believed.

        Args:
            now: also where the last look is not `REFRESH_EVERY` seconds ago.

        Raises:
            CacheError: the store cannot be asked.
        """
        if not now and time.monotonic() - self._looked < REFRESH_EVERY:
            return
        there = {name: info for name, info in self.remote.listing().items() if is_ours(name)}
        files = {self.folder / name: info for name, info in there.items() if name.endswith(".h5")}
        for path in self.paths() if there else ():
            if path not in files:
                self._forget(path)
        changed = []
        for path, info in files.items():
            card = self.card(path)
            if card is None or card["stamp"] != stamp(info):
                if card is not None:
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
        """Write the card of a file of the store; what is damaged there is said on it."""
        card: dict[str, Any] = {"stamp": stamp(info), "bytes": info["size"], "modified": modified(info)}
        entry = self.entry(path)
        try:
            card |= description(entry, int(info["size"]))
        except CacheError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return  # removed since the store was listed
            if error.__cause__ is not None and not isinstance(error, CorruptCache):
                raise  # out of reach: nothing is known of the file itself
            card |= {"damage": error.what, "corrupt": isinstance(error, CorruptCache)}
        write_file(card_path(path), json.dumps(card).encode())

    def _forget(self, path: Path) -> None:
        """Remove what is here of a file that the store has no more; not while somebody is at work on it."""
        with entry_lock(path):
            if is_locked(path):
                return
            shards = path.parent.glob(f"{glob.escape(path.stem)}.shard-*.h5")
            for one in (card_path(path), path, record_path(path), *shards):
                one.unlink(missing_ok=True)

    def _follow_record(self, path: Path, info: dict[str, Any]) -> None:
        """Take over what a record of the store says that the one here does not."""
        card = self.card(path)
        if card is None or "meta" not in card or card.get("record") == stamp(info):
            return
        if info["size"] <= LONGEST_RECORD:
            name = card["meta"].get("fingerprint")
            try:
                theirs = parse_record(self.entry(record_path(path)).read(), name)
            except CacheError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    return  # removed since the store was listed
                raise
            ours = read_record(path, name)
            if theirs and ours.merged(theirs) != ours:
                write_record(path, ours.merged(theirs))
        write_file(card_path(path), json.dumps({**card, "record": stamp(info)}).encode())

    # -- fetching -----------------------------------------------------------------------------------

    def fetch(self, path: Path, *, anew: bool = False) -> SealedFile:
        """The file of the store as a whole, checked file of this machine, fetched where it is not here.

        Args:
            anew: fetch it even if it is here.

        Raises:
            CorruptCache: it is damaged in the store: what came had a wrong checksum twice.
            CacheError: not to be reached, no longer there, or no room for it.
        """
        with entry_lock(path):
            missing = anew or not path.exists()
            if missing:
                self._fetch(path)
            try:
                sealed = SealedFile(path)
            except CacheError:  # the copy on this disk went bad
                if missing:
                    raise
                self._fetch(path)
                sealed = SealedFile(path)
            used(path)
        if missing:
            evict(keep=path)
        return sealed

    def _fetch(self, path: Path) -> None:
        entry, temporary = self.entry(path), temporary_beside(path)
        try:
            for attempt in range(TRIES):
                try:
                    entry.get(temporary)
                    _check(temporary, path)
                    break
                except CorruptCache as error:
                    if attempt + 1 == TRIES:
                        what = error.what.replace(str(temporary), shown(entry.url))
                        raise CorruptCache(f"{what} (fetched {TRIES} times)", hint=HINT) from error
            publish(temporary, path, replace=True)
            # Its age is that of the store's, so that files are looked at in the same order, here or not.
            os.utime(path, (time.time(), (self.card(path) or {}).get("modified") or time.time()))
        finally:
            temporary.unlink(missing_ok=True)

    # -- bringing and removing ----------------------------------------------------------------------

    def push(self, path: Path, *, replace: bool = False) -> None:
        """See the function of this name."""
        entry = self.entry(path)
        before = shard_names(self.card(path) or {}, path)
        if replace or self.card(path) is None:
            if replace or entry.info() is None:
                self._push_shards(path)  # first: with its manifest the cache is there, and whole
            if entry.put(path, replace=replace):
                self._push_shards(path)  # again those that another machine replaced meanwhile
                self._remove_shards(path, before)
            else:
                self._take_theirs(path)
            info = entry.info()
            if info is None:
                raise CacheError(f"{shown(entry.url)} was removed just after it was written")
            self._note(path, info)
        # The record only saves time, so that one that cannot be brought is no error.
        with suppress(CacheError):
            self._push_record(path)

    def _push_shards(self, path: Path) -> None:
        """Bring the shards of a manifest that the store has not, or has with another seal."""
        for about in SealedFile(path).meta.get("shards", []):
            shard = path.with_name(about["name"])
            if seal_digest(self.entry(shard)) != about["seal"]:
                self.entry(shard).put(shard, replace=True)

    def _remove_shards(self, path: Path, before: list[str]) -> None:
        """Remove shards that the manifest had and has no more."""
        kept = {about["name"] for about in SealedFile(path).meta.get("shards", [])}
        for name in before:
            if name not in kept:
                self.entry(path.with_name(name)).remove()

    def _take_theirs(self, path: Path) -> None:
        """Of two machines that made one file the store keeps the first one's; where it is damaged, ours."""
        try:
            self.fetch(path, anew=True)
        except CorruptCache:
            self.entry(path).put(path, replace=True)

    def _push_record(self, path: Path) -> None:
        card = self.card(path) or {}
        name = card.get("meta", {}).get("fingerprint", "")
        entry = self.entry(record_path(path))
        there = entry.info()
        theirs = parse_record(entry.read(), name) if there is not None else None
        ours = read_record(path, name)
        ours = ours.merged(theirs) if theirs else ours
        if ours != (theirs or CacheRecord(name)):
            entry.write(ours.to_bytes())
        info = entry.info()
        if info is not None:
            write_file(card_path(path), json.dumps({**card, "record": stamp(info)}).encode())

    def remove(self, path: Path) -> None:
        """See the function of this name."""
        there = (self.folder / name for name in self.remote.listing())
        shards = [one for one in there if cache_of(one) == path != one]  # with those that no manifest has
        for one in (path, record_path(path), *shards):
            self.entry(one).remove()
        with entry_lock(path), explained(path):
            card_path(path).unlink(missing_ok=True)


def _check(temporary: Path, path: Path) -> None:
    """Refuse what came unless every checksum holds and it is what its name says."""
    try:
        sealed = SealedFile(temporary)
        sealed.verify()
    except FeatcacheError as error:
        raise CorruptCache(error.what) from error
    if not cache_of(path).stem.endswith(f"-{str(sealed.meta.get('fingerprint'))[:12]}"):
        raise CorruptCache(f"{temporary} is another cache file than its name says")
