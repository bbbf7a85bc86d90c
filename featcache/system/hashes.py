"""The SHA-256 of a file as it is now, for callers that make sure that what they hashed is what they read.

They hash a file, read it, and hash it again: another hash means that a part of what they read may come from
another file. The second time costs a look at the file's state, unless that has changed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SETTLED = 2.0  # seconds; two changes of a file within the resolution of its times leave the same state
MOST = 1 << 16  # files whose hashes are kept


class FileState(NamedTuple):
    """What changes when a file is written or replaced; `changed_ns` cannot be set by a program."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def settled(self) -> bool:
        """Whether any later change gives another state; on Windows that is never certain."""
        newest = max(self.modified_ns, self.changed_ns)
        return os.name != "nt" and time.time_ns() - newest > SETTLED * 1e9


_known: dict[str, tuple[FileState, str]] = {}


def current_hash(path: Path) -> str:
    """SHA-256 of the bytes of the file at `path` now, 64 hex digits.

    They are not read again while the state of the file is the one that they were read in.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    name = str(path.absolute())
    with open(path, "rb") as file:  # opening it makes network file systems ask for its state
        before = FileState.of(os.fstat(file.fileno()))
        known = _known.get(name)
        if known is not None and known[0] == before:
            return known[1]
        settled = before.settled
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if settled and FileState.of(os.fstat(file.fileno())) == before:
            if len(_known) >= MOST:
                _known.clear()
            _known[name] = (before, found)
    return found


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Names of the files whose hashes differ, for messages; empty where none does."""
    return ", ".join(sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)))
