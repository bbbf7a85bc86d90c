"""The writer's lock of a cache file: one writer at a time, and who is kept out is told by whom.

The lock is the operating system's, on `<name>.lock`, so that of a dead process is free at once, whatever
it left behind. `<name>.holder` beside it only says who has it: process, host, since when.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import LockHeld, UsageError
from featcache.fingerprint import canonical
from featcache.system.durable import explained, write_file

if TYPE_CHECKING:
    from filelock import FileLock

LONGEST_WAIT = 100 * 365 * 86400.0  # seconds; what "for ever" comes to
POLL = 0.2  # seconds between two looks at a lock that is waited for


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a process, its host, and since when, in local time."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def dead(self) -> bool:
        """Whether it is certain that this process is no more; of another host's nothing is certain."""
        if self.host != socket.gethostname() or os.name == "nt":
            return False
        try:
            os.kill(self.pid, 0)  # asks only whether it could be signalled
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # another user's; no process id
            return False
        return False


@contextmanager
def locked(target: Path, wait: float = 0.0, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the writer's lock of `target`; the lock of a dead process counts as free.

    Args:
        target: the file to be written; its folder is made where it is not there.
        wait: seconds to wait for another holder; 0: not at all, infinity: until it is done.
        waiting: called once, with who is waited for, when there is something to wait for.

    Raises:
        LockHeld: another process holds it (still, after `wait`); says which, where and since when.
        UsageError: `wait` is negative or no number.
    """
    if not wait >= 0:
        raise UsageError(f"cannot wait {wait} seconds for a lock", hint="0 or more")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(target, min(wait, LONGEST_WAIT), waiting)
    try:
        own = Holder(os.getpid(), socket.gethostname(), time.strftime("%F %T"))
        write_file(holder_path(target), canonical(asdict(own)))
        yield
    finally:
        with suppress(OSError):  # a name that stays is known for that of a dead process later
            holder_path(target).unlink()
        lock.release()


def lock_path(target: Path) -> Path:
    return target.with_suffix(".lock")


def holder_path(target: Path) -> Path:
    return target.with_suffix(".holder")


def holder(target: Path) -> Holder | None:
    """Who says to hold the lock of `target`; None where nobody does, or only a process that is dead."""
    try:
        content = json.loads(holder_path(target).read_bytes())
        found = Holder(int(content["pid"]), str(content["host"]), str(content["since"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return None if found.dead else found


def is_locked(target: Path) -> bool:
    """Whether a writer is at work on `target` this moment; makes no file.

    Raises:
        CacheError: the lock cannot be looked at.
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
    """Remove the lock's own files; only for who holds it.

    Done while the lock is held: who waits for it then sees that its file is gone and asks for the new
    one. Removed after it was let go, it might be another's by then, and a third would find none.
    """
    holder_path(target).unlink(missing_ok=True)
    with suppress(PermissionError):  # Windows removes no open file; the next `gc` does
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
            hint="wait for it, or stop it; what it finished is kept",
        ) from None


def _who(target: Path) -> str:
    found = holder(target)
    return "a process that has only just begun" if found is None else str(found)
