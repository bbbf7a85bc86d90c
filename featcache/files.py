"""The few file operations that must survive a crash; every durable write goes through here.

A file is written under a temporary name in its own folder, fsynced, given its final name in one
step, and the folder is fsynced: after a power cut it is there whole, or not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from featcache.errors import CacheError

TEMPORARY = ".tmp-"


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. A no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A name in the folder of `path` that no other process uses."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")


def remove_temporaries(path: Path) -> None:
    """Remove what unfinished writes of `path` left behind; only for who holds its lock."""
    for left in path.parent.glob(f"{TEMPORARY}*-{path.name}"):
        left.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace `path`, whole or not at all, durably.

    Raises:
        CacheError: disk full, quota, or any other refusal of the file system.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def publish(temporary: Path, final: Path, *, replace: bool = False) -> bool:
    """Give the finished `temporary` its `final` name unless that is taken; durable on return.

    Args:
        replace: take the name even if it is taken; who reads the old file goes on reading it.

    Returns:
        True when published, False when `final` was there already (and `temporary` is removed).
    """
    with explained(final):
        fsync_file(temporary)
        if replace:
            os.replace(temporary, final)
            fsync_folder(final.parent)
            return True
        try:
            os.link(temporary, final)  # fails where the name is taken; rename would overwrite
        except FileExistsError:
            temporary.unlink()
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            if final.exists():
                temporary.unlink()
                return False
            os.rename(temporary, final)  # file systems without hard links
        else:
            temporary.unlink()
        fsync_folder(final.parent)
        return True


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse before work starts what the disk under `folder` cannot hold.

    Raises:
        CacheError: fewer than `needed` bytes are free.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CacheError(
            f"{what} needs {size_text(needed)}, but {existing} has {size_text(free)} free",
            hint="free some space, or put the cache elsewhere with --cache-dir",
        )


def size_text(size: float) -> str:
    """1536 -> '1.5 kB', in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a CacheError that says what could not be written and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise CacheError(
            f"cannot write {path}: {error.strerror or error}",
            hint="finished blocks are kept: free some space and run the same command again"
            if full
            else "check the folder's permissions, or choose another with --cache-dir",
        ) from error
