"""The mirror: copies of remote files on this machine's disk, the least recently used of which are evicted.

Environment variables set its folder and size (`FEATCACHE_MIRROR`, `FEATCACHE_MIRROR_SIZE`), because a disk
belongs to the machine and not to the project.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import CacheError, SourceError, UsageError
from featcache.system.durable import TEMPORARY, explained, publish, temporary_beside
from featcache.system.lock import ProcessLock
from featcache.system.stores import opened, shown, stamp
from featcache.system.units import DAY, parse_size

FOLDER = "FEATCACHE_MIRROR"
SIZE = "FEATCACHE_MIRROR_SIZE"
DEFAULT_SIZE = "50GB"
_KEY = re.compile("[0-9a-f]{24}")  # see `key_of`
GRACE = 60.0  # a file that was used in the last so many seconds is not evicted


def mirror_root() -> Path:
    """The folder of the mirror, absolute: `FEATCACHE_MIRROR`, or one in the user's cache folder."""
    asked = os.environ.get(FOLDER)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(asked) if asked else Path(home) / "featcache" / "mirror"
    return folder.expanduser().absolute()


def mirror_size() -> int:
    """Most bytes of the mirror: `FEATCACHE_MIRROR_SIZE`, or 50 GB."""
    try:
        return parse_size(os.environ.get(SIZE) or DEFAULT_SIZE)
    except UsageError as error:
        raise UsageError(f"{SIZE}: {error.what}", hint=error.hint) from None


def is_data(path: Path) -> bool:
    """Whether `path` is a data file of the mirror, which can be fetched again at any time."""
    return path.parents[1] == mirror_root() / "data"


def key_of(text: str) -> str:
    """A folder name for a URL: 24 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def fetched(url: str) -> Path:
    """A local copy of the file at `url`, with its own name; fetched again only when the file has changed.

    Raises:
        SourceError: the file does not exist, cannot be reached, or was not fetched completely.
        UsageError: its driver is not installed.
    """
    remote = opened(url, SourceError)
    info = remote.info()
    if info is None:
        raise SourceError(f"no such file: {shown(url)}", hint="look at the address")
    if remote.name in ("", ".", ".."):
        raise SourceError(f"{shown(url)} has no file name", hint="the address of one file is needed")
    path = mirror_root() / "data" / key_of(f"{url}\n{stamp(info)}") / remote.name
    with entry_lock(path):
        if not path.is_file():
            temporary = temporary_beside(path)
            try:
                remote.get(temporary)
                publish(temporary, path, replace=True)
            finally:
                temporary.unlink(missing_ok=True)
        used(path)
    evict(keep=path)
    return path


@contextmanager
def entry_lock(path: Path, wait: float = -1) -> Iterator[None]:
    """Hold the lock of one file of the mirror; its folder is made.

    Args:
        wait: seconds to wait for another process that fetches it; below 0: without limit.

    Raises:
        TimeoutError: another process still holds it.
        CacheError: the file system refuses.
    """
    name = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    with explained(path):
        for folder in (path.parent, mirror_root() / "locks"):
            folder.mkdir(parents=True, exist_ok=True)  # not durable: a lost folder is made again
        lock = ProcessLock(mirror_root() / "locks" / f"{name}.lock")
        taken = lock.acquire(wait)
    if not taken:
        raise TimeoutError(f"another process fetches {path.name}")
    try:
        yield
    finally:
        lock.release()


def used(path: Path) -> None:
    """Record that a file of the mirror is used now."""
    with suppress(OSError):
        os.utime(path, (time.time(), path.stat().st_mtime))


@dataclass(frozen=True)
class _MirrorFile:
    path: Path
    bytes: int
    used: float  # seconds since the epoch


def evict(keep: Path | None = None, removable: Callable[[Path], bool] = is_data) -> list[Path]:
    """Remove the least recently used files until the mirror is within its size.

    A file stays if another process writes or fetches it, or if it was used in the last `GRACE` seconds. A
    process that has opened a removed file can still read it.

    Args:
        keep: a file that stays.
        removable: whether a file can be fetched again; called while its lock is held.

    Returns:
        The removed files.
    """
    root, limit, now = mirror_root(), mirror_size(), time.time()
    _remove_litter(root, now)
    data = (one for one in _mirror_files(root, "data/*/*") if _KEY.fullmatch(one.path.parent.name))
    files = [*data, *_mirror_files(root, "cache/*/*/*/*.h5")]
    total, removed = sum(one.bytes for one in files), []
    for one in sorted(files, key=lambda one: one.used):
        if total <= limit:
            break
        if one.path != keep and now - one.used > GRACE and _removed(one.path, removable):
            removed.append(one.path)
            total -= one.bytes
    return removed


def _removed(path: Path, removable: Callable[[Path], bool]) -> bool:
    """Remove a file if it is `removable` and no other process holds its lock."""
    try:
        with entry_lock(path, wait=0):
            if not removable(path):
                return False
            path.unlink(missing_ok=True)
            if is_data(path):
                path.parent.rmdir()
            return True
    except (OSError, CacheError):  # another process holds the lock, or the file system refuses
        return False


def _mirror_files(root: Path, pattern: str) -> list[_MirrorFile]:
    found = []
    for path in root.glob(pattern):
        with suppress(OSError):
            stat = path.stat()
            found.append(_MirrorFile(path, stat.st_size, max(stat.st_atime, 0)))
    return [one for one in found if not one.path.name.startswith(TEMPORARY)]


def _remove_litter(root: Path, now: float) -> None:
    """Remove temporary files of processes that were killed while they fetched."""
    for pattern in (f"data/*/{TEMPORARY}*", f"cache/*/*/*/{TEMPORARY}*"):
        for path in root.glob(pattern):
            with suppress(OSError):
                if now - path.stat().st_mtime > DAY:
                    path.unlink()
