"""What was fetched from elsewhere, on this machine's disk: where it lies, and what goes when it is too much.

Folder and size are the environment's to say (`FEATCACHE_MIRROR`, `FEATCACHE_MIRROR_SIZE`): a disk is the
machine's, not the project's.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import CacheError, SourceError, UsageError
from featcache.system.durable import TEMPORARY, explained, publish, temporary_beside
from featcache.system.stores import opened, shown, stamp
from featcache.system.units import DAY, parse_size

FOLDER = "FEATCACHE_MIRROR"
SIZE = "FEATCACHE_MIRROR_SIZE"
DEFAULT_SIZE = "50GB"
GRACE = 60.0  # seconds in which a file that was just used stays, whatever the limit is


def mirror_root() -> Path:
    """`FEATCACHE_MIRROR`, else a folder in the user's cache folder; absolute."""
    asked = os.environ.get(FOLDER)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(asked) if asked else Path(home) / "featcache" / "mirror"
    return folder.expanduser().absolute()


def mirror_size() -> int:
    """Bytes that may stay in `mirror_root`: `FEATCACHE_MIRROR_SIZE`, by default 50 GB."""
    try:
        return parse_size(os.environ.get(SIZE) or DEFAULT_SIZE)
    except UsageError as error:
        raise UsageError(f"{SIZE}: {error.what}", hint=error.hint) from None


def is_data(path: Path) -> bool:
    """Whether `path` is a data file of the mirror: it can be fetched again at any time."""
    return path.parents[1] == mirror_root() / "data"


def key_of(text: str) -> str:
    """A folder's name for a URL."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def fetched(url: str) -> Path:
    """The file at `url` as one of this machine, under its own name; fetched again only when it has changed.

    Raises:
        SourceError: not there, not to be reached, or not fetched whole.
        UsageError: no driver for it is installed.
    """
    remote = opened(url, SourceError)
    info = remote.info()
    if info is None:
        raise SourceError(f"no such file: {shown(url)}")
    if remote.name in ("", ".", ".."):
        raise SourceError(f"{shown(url)} has no file name")
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
        wait: seconds to wait for another process that fetches it; below 0: as long as it takes.

    Raises:
        TimeoutError: another still has it.
        CacheError: the file system refuses.
    """
    from filelock import FileLock

    name = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    with explained(path):
        for folder in (path.parent, mirror_root() / "locks"):
            folder.mkdir(parents=True, exist_ok=True)  # lost in a power cut, they are made again
    with FileLock(mirror_root() / "locks" / f"{name}.lock", timeout=wait):
        yield


def used(path: Path) -> None:
    """Note that a file of the mirror was used now; the least recently used ones go first."""
    with suppress(OSError):
        os.utime(path, (time.time(), path.stat().st_mtime))


@dataclass(frozen=True)
class _Kept:
    path: Path
    bytes: int
    used: float  # seconds since the epoch


def evict(keep: Path | None = None, removable: Callable[[Path], bool] = is_data) -> list[Path]:
    """Remove what was used longest ago until the mirror is within its size.

    A file that another process is writing or fetching stays, and so does a file that was used within `GRACE`
    seconds. A process that has a removed file open goes on reading it.

    Args:
        keep: stays in any case.
        removable: whether a file can be fetched again; asked while its lock is held.

    Returns:
        The removed files.
    """
    root, limit, now = mirror_root(), mirror_size(), time.time()
    _remove_litter(root, now)
    files = [*_kept(root, "data/*/*"), *_kept(root, "cache/*/*/*/*.h5")]
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


def _kept(root: Path, pattern: str) -> list[_Kept]:
    found = []
    for path in root.glob(pattern):
        with suppress(OSError):
            stat = path.stat()
            found.append(_Kept(path, stat.st_size, max(stat.st_atime, 0)))
    return [one for one in found if not one.path.name.startswith(TEMPORARY)]


def _remove_litter(root: Path, now: float) -> None:
    """Remove what processes that were killed while they fetched have left."""
    for pattern in (f"data/*/{TEMPORARY}*", f"cache/*/*/*/{TEMPORARY}*"):
        for path in root.glob(pattern):
            with suppress(OSError):
                if now - path.stat().st_mtime > DAY:
                    path.unlink()
