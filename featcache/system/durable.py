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
from typing import BinaryIO, cast

from featcache.errors import CacheError
from featcache.system.units import size_text

TEMPORARY = ".tmp-"


class Disk:
    """The operations a crash can come between, as the operating system has them.

    The cache makes its changes through `disk` alone, so that the tests can put one in its place that loses
    power (`tests/disk.py`).
    """

    def open(self, path: Path, mode: str) -> BinaryIO:
        """A file to be written, in a binary mode."""
        return cast(BinaryIO, open(path, mode))

    def reserve(self, file: BinaryIO, nbytes: int) -> None:
        """Make room for `nbytes`; a disk that cannot hold them says so now, as an ordinary error."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)
        else:
            file.truncate(nbytes)

    def fsync(self, file: BinaryIO) -> None:
        """Make the bytes of `file` durable, those in Python's buffer too."""
        file.flush()
        os.fsync(file.fileno())

    def fsync_folder(self, folder: Path) -> None:
        """Make the names in `folder` durable, where the system knows such a thing."""
        if os.name == "nt":
            return  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives: no such operation
                raise
        finally:
            os.close(descriptor)

    def mkdir(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give `source` a second name; raises FileExistsError where that is taken."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def rmdir(self, folder: Path) -> None:
        folder.rmdir()


disk = Disk()


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. A no-op where folders cannot be opened (Windows)."""
    disk.fsync_folder(folder)


def fsync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    with disk.open(path, "r+b") as file:
        disk.fsync(file)


def make_folder(folder: Path) -> None:
    """Make `folder` with those above it, and make all their names durable.

    A file survives only if every name above it does. A folder that is there already may be as new as one
    that is made here, by a process that was killed just then: so nothing is asked about who made which,
    and every name is made durable up to the mount point or the first folder that is not ours to write to.
    """
    folder = folder.absolute()
    for new in reversed([level for level in (folder, *folder.parents) if not level.is_dir()]):
        disk.mkdir(new)
    for level in (folder, *folder.parents):
        if os.path.ismount(level) or not os.access(level.parent, os.W_OK):
            break
        disk.fsync_folder(level.parent)


def temporary_beside(path: Path) -> Path:
    """A name in the folder of `path` that no other process uses."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")


def remove_temporaries(path: Path) -> None:
    """Remove what unfinished writes of `path` left behind; only for who holds its lock."""
    for left in path.parent.glob(f"{TEMPORARY}*-{path.name}"):
        disk.unlink(left)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace `path`, whole or not at all, durably.

    Raises:
        CacheError: disk full, quota, or any other refusal of the file system.
    """
    with explained(path):
        if not path.parent.is_dir():
            make_folder(path.parent)
        temporary = temporary_beside(path)
        try:
            with disk.open(temporary, "xb") as file:
                file.write(content)
                disk.fsync(file)
            disk.replace(temporary, path)
        except BaseException:
            disk.unlink(temporary)
            raise
        disk.fsync_folder(path.parent)


def publish(temporary: Path, final: Path, *, replace: bool = False) -> bool:
    """Give the finished `temporary` its `final` name unless that is taken; durable on return.

    Args:
        replace: take the name even if it is taken; who reads the old file goes on reading it.

    Returns:
        True when published, False when `final` was there already (and `temporary` is removed).
    """
    with explained(final):
        with disk.open(temporary, "r+b") as file:
            disk.fsync(file)
        won = _take(temporary, final, replace)
        if not won:
            disk.unlink(temporary)
        disk.fsync_folder(final.parent)  # also of another's file: the caller gives up its own for it
        return won


def _take(temporary: Path, final: Path, replace: bool) -> bool:
    """Move `temporary` to `final`; False where that is taken and not to be replaced."""
    if replace:
        disk.replace(temporary, final)
        return True
    try:
        disk.link(temporary, final)  # fails where the name is taken; a rename would overwrite
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        if final.exists():
            return False
        disk.replace(temporary, final)  # file systems without hard links
    else:
        disk.unlink(temporary)
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
