"""The lock of a cache file: one process writes at a time, and the others learn which.

The operating system locks `<name>.lock`, so that the lock of a dead process is free at once. `<name>.holder`
beside it tells who has the lock: process, host, since when.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import DiskError, LockHeld, UsageError
from featcache.fingerprint import canonical
from featcache.plain_file import read_plain
from featcache.system.documents import read_document
from featcache.system.durable import explained, write_file

if TYPE_CHECKING:
    from filelock import BaseFileLock

LONGEST_WAIT = 100 * 365 * 86400.0  # seconds; an infinite wait is this long
POLL = 0.2  # seconds between two attempts to take a lock
LEASE = 60.0  # seconds without a sign of life, after which a lock file of another host is free
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock: its id, its host, and since when, in local time."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def dead(self) -> bool:
        """Whether this process has certainly ended; of a process on another host that is never certain."""
        if self.host != socket.gethostname() or os.name == "nt":
            return False
        try:
            os.kill(self.pid, 0)  # sends no signal, only checks that it could
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # a process of another user, or no process id
            return False
        return False


@contextmanager
def locked(target: Path, wait: float = 0.0, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of `target`; the lock of a dead process is free.

    Args:
        target: the file to be written; its folder is made if it does not exist.
        wait: seconds to wait for another process that holds the lock; infinity: until it is done.
        waiting: called once before a wait, with a message that names the other process.

    Raises:
        LockHeld: another process holds it, after `wait` seconds too; names the process.
        UsageError: `wait` is negative or NaN.
    """
    if not wait >= 0:
        raise UsageError(f"cannot wait {wait} seconds for a lock", hint="give 0 or more")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(target, min(wait, LONGEST_WAIT), waiting)
    try:
        own = Holder(os.getpid(), socket.gethostname(), time.strftime("%F %T"))
        with suppress(DiskError):  # on a full disk `cache gc` has to work; others do not learn who holds it
            write_file(holder_path(target), canonical(asdict(own)))
        yield
    finally:
        with suppress(OSError):  # later processes see that its process is dead
            holder_path(target).unlink()
        lock.release()


def lock_path(target: Path) -> Path:
    return target.with_suffix(".lock")


def holder_path(target: Path) -> Path:
    return target.with_suffix(".holder")


def holder(target: Path) -> Holder | None:
    """The process that the `.holder` file of `target` names; None if there is none or it is dead."""
    try:
        found = read_document(Holder, read_plain(holder_path(target)), "the holder", ValueError)
    except (OSError, ValueError):
        return None
    return None if found.dead else found


def is_locked(target: Path) -> bool:
    """Whether a process holds the lock of `target` now; creates no file.

    Raises:
        CacheError: the lock cannot be opened.
    """
    path = lock_path(target)
    if not path.exists() and not lease_path(path).exists():
        return False
    with explained(target):
        lock = ProcessLock(path)
        if lock.acquire():
            lock.release()
            return False
    return True


def discard_lock(target: Path) -> None:
    """Remove the files of the lock of `target`; the caller holds the lock.

    A process that waits for the lock then notices that the file is gone and locks a new one. If the file
    were removed after the lock is released, it could be locked by another process by then, and a third one
    could lock a new file at the same time.
    """
    for path in (holder_path(target), lock_path(target), lease_path(lock_path(target))):
        with suppress(PermissionError):  # on Windows an open file stays; the next `gc` removes it
            path.unlink(missing_ok=True)


def lease_path(path: Path) -> Path:
    """The file that stands for the lock file `path` where the system has no locks."""
    return path.with_suffix(".lease")


class ProcessLock:
    """A lock that one process holds at a time, on one machine or on several that share the folder.

    The operating system locks the file `path`. Where the file system or Python has no locks (some network
    drives and containers), a file with the process and its host is made instead, which can be made only
    once, and the process writes to it now and then. The lock is free when its process has ended, or, where
    that is of another host, when this object has seen no sign of life for LEASE seconds.
    """

    def __init__(self, path: Path) -> None:
        from filelock import FileLock, SoftFileLock

        self.path = path
        # Where there are no locks, filelock would fall back to `SoftFileLock`, which has no sign of life: the
        # lock of a lost host, or a lock file that an earlier process left, would stay for ever.
        self._lock: BaseFileLock = (
            self._lease()
            if FileLock is SoftFileLock
            else FileLock(path, thread_local=False, fallback_to_soft=False)  # any thread may release it
        )

    def acquire(self, wait: float = 0.0) -> bool:
        """Take the lock, after `wait` seconds at most; below 0: however long it takes.

        Returns:
            False if another process still holds it.

        Raises:
            OSError: the lock file cannot be opened.
        """
        from filelock import Timeout

        poll = min(POLL, wait) if wait > 0 else POLL
        try:
            try:
                self._lock.acquire(timeout=wait, poll_interval=poll)
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                self._lock = self._lease()
                self._lock.acquire(timeout=wait, poll_interval=poll)
        except Timeout:
            return False
        return True

    def _lease(self) -> BaseFileLock:
        from filelock import SoftFileLease

        return SoftFileLease(lease_path(self.path), lease_duration=LEASE, thread_local=False)

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


def _acquire(target: Path, wait: float, waiting: Callable[[str], None] | None) -> ProcessLock:
    lock = ProcessLock(lock_path(target))
    if lock.acquire():
        return lock
    if wait and waiting is not None:
        waiting(f"waiting for {_who(target)}, which is writing {target.name}")
    if lock.acquire(wait):
        return lock
    waited = f" (waited {wait:g} seconds)" if wait else ""
    hint = "wait for it, or stop it; finished work is kept"
    if lease_path(lock.path).exists():
        hint += f"; if its host is gone, wait until its lock is free: --wait {2 * LEASE:g}"
    raise LockHeld(f"another process is writing {target}: {_who(target)}{waited}", hint=hint)


def _who(target: Path) -> str:
    return str(holder(target) or "a process that has just started")
