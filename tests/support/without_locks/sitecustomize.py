"""On the path of a process: `flock` fails under the folder NO_LOCKS_IN, as on a file system without locks."""

import errno
import fcntl
import os
from pathlib import Path

_flock = fcntl.flock


def flock(file: int, operation: int) -> None:
    """As `fcntl.flock`, with the error number NO_LOCKS_ERROR under NO_LOCKS_IN."""
    number = file if isinstance(file, int) else file.fileno()
    path = Path(f"/proc/self/fd/{number}").readlink()
    if str(path).startswith(os.environ.get("NO_LOCKS_IN", "\0")):
        raise OSError(getattr(errno, os.environ["NO_LOCKS_ERROR"]), "no locks on this file system")
    _flock(file, operation)


fcntl.flock = flock
