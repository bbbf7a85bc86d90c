"""Files that anybody may have put there, read without waiting and without filling the memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LONGEST_DOCUMENT = 64 << 20  # bytes
LONGEST_ARRAYS = 64 << 30  # bytes of a file of weights or of a commit unit


def read_plain(path: Path, most: int = LONGEST_DOCUMENT) -> bytes:
    """The bytes of a file, which may have been put there by anybody: never waits, never fills the memory.

    A link to a file is followed, because tools that version data replace files by links.

    Args:
        most: bytes that are read.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe or a device, or longer than `most`.
    """
    _require_plain(path, path.stat(), most)  # before it is opened: that alone may wait, or start something
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        _require_plain(path, found, most)
        return file.read(found.st_size)  # what a process appends meanwhile is not read


def _require_plain(path: Path, found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise OSError(errno.EINVAL, f"it is {what} and no file", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"it has more than {most >> 20} MiB", str(path))
