"""The file operations that survive a crash; every durable write uses them.

A file is written under a temporary name in its own folder, fsynced, given its final name in one step, and
the folder is fsynced: after a power cut the file is complete or absent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from featcache.errors import CacheError, DiskError
from featcache.system.units import size_text

TEMPORARY = ".tmp-"
LONGEST_SHOWN = 300  # characters of a path in a message
FREE_SPACE = "free some space on that disk"
HINTS = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: "free some space: your quota on that disk is used up",
    errno.EFBIG: "files of this size are not allowed here: see `ulimit -f`, or use another file system",
    errno.EROFS: "the disk can only be read: write to another one",
    errno.ENAMETOOLONG: "use shorter names of folders and files",
    errno.EMFILE: "more files may be opened after: ulimit -n 4096",
}  # fmt: skip
PUBLISHING = 120.0  # seconds to wait for a process that publishes the same file
TRIES = 20  # attempts to remove a folder while other processes write to it


class Disk:
    """The operations of the operating system between which a crash can come.

    The cache changes files through `disk` only, so that tests can replace it by one that loses power
    (`tests/support/disk.py`).
    """

    def open(self, path: Path, mode: str) -> BinaryIO:
        """Open a file for writing, in a binary mode."""
        return cast(BinaryIO, open(path, mode))

    def reserve(self, file: BinaryIO, nbytes: int) -> None:
        """Allocate `nbytes`; raises OSError if the disk cannot hold them."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)
        else:
            file.truncate(nbytes)

    def begin_writing(self, file: BinaryIO, start: int, nbytes: int) -> None:
        """Let the system bring bytes of `file` to the disk, if it can be told to; nothing is waited for."""
        if hasattr(os, "posix_fadvise"):
            file.flush()
            with contextlib.suppress(OSError):  # advice; some kernels and file systems take none
                # What is not on the disk yet stays in memory until it is.
                os.posix_fadvise(file.fileno(), start, nbytes, os.POSIX_FADV_DONTNEED)

    def fsync(self, file: BinaryIO) -> None:
        """Make the bytes of `file` durable, including those in Python's buffer."""
        file.flush()
        os.fsync(file.fileno())

    def fsync_folder(self, folder: Path) -> None:
        """Make the names in `folder` durable, where the system supports that."""
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except PermissionError:
            return  # Windows cannot open folders, nor may a process that is only allowed to write to one
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by some network drives
                raise
        finally:
            os.close(descriptor)

    def mkdir(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give `source` a second name; raises FileExistsError if a file has it."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def rmdir(self, folder: Path) -> None:
        folder.rmdir()


disk = Disk()


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system supports that."""
    disk.fsync_folder(folder)


def fsync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    with disk.open(path, "r+b") as file:
        disk.fsync(file)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, and make all their names durable.

    A file survives only if every name above it does. A folder that exists already may be just as new, made
    by a process that was killed before it could make the name durable. So every name is made durable, up to
    the mount point or the first folder that this process may not write to.
    """
    folder = folder.absolute()
    for new in reversed([level for level in (folder, *folder.parents) if not level.is_dir()]):
        disk.mkdir(new)
    for level in (folder, *folder.parents):
        if os.path.ismount(level) or not os.access(level.parent, os.W_OK):
            break
        disk.fsync_folder(level.parent)


def make_own_folder(folder: Path) -> None:
    """`make_folder` for a folder in which featcache removes files: it must be no link to another one.

    Raises:
        CacheError: it is a link, or the file system refuses.
    """
    if folder.is_symlink():
        raise CacheError(
            f"{folder} is a link, and featcache would remove files in the folder that it points at",
            hint="remove the link: unfinished work is kept in a folder of its own",
        )
    with explained(folder):
        make_folder(folder)


def remove_own_folder(folder: Path, ours: re.Pattern[str]) -> None:
    """Remove a folder that featcache made, if it is there: the files that it made, then the empty folder.

    Of a link to a folder only the link is removed.

    Args:
        ours: the whole names of files that featcache makes there.

    Raises:
        CacheError: the folder holds something else, which stays with the folder.
        OSError: the file system refuses.
    """
    if folder.is_symlink():
        disk.unlink(folder)
        return
    for left in reversed(range(TRIES)):
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        foreign = [
            one.name for one in entries if not ours.fullmatch(one.name) or one.is_dir(follow_symlinks=False)
        ]
        for one in entries:
            if one.name not in foreign:
                disk.unlink(Path(one.path))
        if foreign:
            raise CacheError(
                f"{folder} holds {', '.join(sorted(foreign)[:3])}, which featcache did not make, and stays",
                hint="move it elsewhere, or remove the folder yourself",
            )
        try:
            disk.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError as error:  # another process has just written a file
            if not left or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def is_plain(path: Path) -> bool:
    """Whether there is a file at `path` itself, which is no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def temporary_beside(path: Path) -> Path:
    """A path in the folder of `path` that no other process uses."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")


def remove_temporaries(path: Path) -> None:
    """Remove what unfinished writes of `path` have left; the caller holds the lock of `path`."""
    for left in path.parent.glob(f"{TEMPORARY}*-{path.name}"):
        disk.unlink(left)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace `path`, completely or not at all, durably.

    Raises:
        DiskError: the disk is full, or the file system refuses for another reason.
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
        replace: replace the file that has the name; processes that read the old one can go on.

    Returns:
        Whether it was published; if not, `final` existed already and `temporary` is removed.
    """
    with explained(final):
        with disk.open(temporary, "r+b") as file:
            disk.fsync(file)
        won = _take(temporary, final, replace)
        if not won:
            disk.unlink(temporary)
        disk.fsync_folder(final.parent)  # also if not `won`: the caller relies on the other file
        return won


def _take(temporary: Path, final: Path, replace: bool) -> bool:
    """Move `temporary` to `final`; False if that exists and `replace` is not set."""
    if replace:
        disk.replace(temporary, final)
        return True
    try:
        disk.link(temporary, final)  # fails if the name is taken; a rename would overwrite
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        return _take_without_links(temporary, final)
    else:
        disk.unlink(temporary)
    return True


def _take_without_links(temporary: Path, final: Path) -> bool:
    """As `_take` on file systems without hard links: processes that publish the same file do it in turn."""
    from filelock import SoftFileLease

    with SoftFileLease(final.with_suffix(".publishing"), timeout=PUBLISHING):
        if final.exists():
            return False
        disk.replace(temporary, final)
    return True


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of `folder` has `needed` bytes free.

    Args:
        what: needs them, for the message.

    Raises:
        DiskError: fewer are free.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskError(
            f"{what} needs {size_text(needed)}, but {existing} has {size_text(free)} free", hint=FREE_SPACE
        )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a `DiskError` that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, f"write {path}") from error


def disk_error(error: OSError, doing: str) -> DiskError:
    """What the file system refused while `doing`, such as `write a.h5`, and what to do about it."""
    if len(doing) > LONGEST_SHOWN:
        doing = f"{doing[: LONGEST_SHOWN // 2]}...{doing[-LONGEST_SHOWN // 2 :]}"
    hint = HINTS.get(error.errno or 0, "check the disk and the permissions of the folder")
    return DiskError(f"cannot {doing}: {error.strerror or error}", hint=hint)
