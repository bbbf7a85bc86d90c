"""The lock of a cache file: one process writes at a time, and the others learn which.

The operating system locks `<name>.lock`, so that the lock of a dead process is free at once. `<name>.holder`
beside it tells who has the lock: process, host, since when.
"""

from __future__ import annotations

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
from featcache.system.documents import read_document
from featcache.system.durable import explained, write_file

if TYPE_CHECKING:
    from filelock import FileLock

LONGEST_WAIT = 100 * 365 * 86400.0  # seconds; an infinite wait is this long
POLL = 0.2  # seconds between two attempts to take a lock


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
        found = read_document(Holder, holder_path(target).read_bytes(), "the holder", ValueError)
    except (OSError, ValueError):
        return None
    return None if found.dead else found


def is_locked(target: Path) -> bool:
    """Whether a process holds the lock of `target` now; creates no file.

    Raises:
        CacheError: the lock cannot be opened.
    """
    from filelock import FileLock, Timeout

    if not lock_path(target).exists():
        return False
    with explained(target):
        lock = FileLock(lock_path(target))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
    return False


def discard_lock(target: Path) -> None:
    """Remove the files of the lock of `target`; the caller holds the lock.

    A process that waits for the lock then notices that the file is gone and locks a new one. If the file
    were removed after the lock is released, it could be locked by another process by then, and a third one
    could lock a new file at the same time.
    """
    holder_path(target).unlink(missing_ok=True)
    with suppress(PermissionError):  # on Windows an open file stays; the next `gc` removes it
        lock_path(target).unlink(missing_ok=True)


def _acquire(target: Path, wait: float, waiting: Callable[[str], None] | None) -> FileLock:
    from filelock import FileLock, Timeout

    lock = FileLock(lock_path(target))
    try:
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        if wait and waiting is not None:
            waiting(f"waiting for {_who(target)}, which is writing {target.name}")
    try:
        lock.acquire(timeout=wait, poll_interval=min(POLL, wait or POLL))
        return lock
    except Timeout:
        waited = f" (waited {wait:g} seconds)" if wait else ""
        raise LockHeld(
            f"another process is writing {target}: {_who(target)}{waited}",
            hint="wait for it, or stop it; finished work is kept",
        ) from None


def _who(target: Path) -> str:
    return str(holder(target) or "a process that has just started")
