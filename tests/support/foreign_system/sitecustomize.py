"""What Windows and macOS refuse, refused on Linux; Python imports this first from a folder on PYTHONPATH.

Absent: `fcntl`, `resource`, `fork`, `sync`, `posix_fallocate`, opened folders, symbolic links. Refused:
replacing or removing a file that this process has open or mapped, names that Windows reserves, paths over 260
characters, a name that another has in upper or lower case. Text files without an encoding are GBK, processes
are spawned. Files that C libraries open (HDF5, Arrow, safetensors) are not watched when they are opened.
"""

import builtins
import errno
import io
import multiprocessing
import os
import re
import shutil
import sys
from typing import Any

LONGEST = 260
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
open_as_before, os_open = io.open, os.open


def checked(path: Any, *, new: bool = True) -> None:
    """Refuse a path that Windows does not take; `new`: also one that another has in upper or lower case."""
    if isinstance(path, int):
        return
    text = os.path.abspath(os.fsdecode(path))
    if len(text) > LONGEST:
        raise FileNotFoundError(errno.ENOENT, "The filename or extension is too long", text)
    for name in text.split("/"):
        if RESERVED.match(name) or re.search(r'[:*?"<>|\\]|[. ]$', name):
            raise OSError(errno.EINVAL, "The filename or volume label syntax is incorrect", text)
    folder, name = os.path.split(text)
    if new and not os.path.lexists(text) and os.path.isdir(folder):
        taken = {other.lower() for other in os.listdir(folder)}
        if name.lower() in taken:
            raise FileExistsError(errno.EEXIST, "File exists under a name of another case", text)


def free(path: Any) -> None:
    """Refuse a file that this process has open or mapped."""
    text = os.path.realpath(os.fsdecode(path))
    if os.path.isdir(text) or not os.path.exists(text):
        return
    used = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    with open_as_before("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        used |= {line.split(None, 5)[5].strip() for line in maps if len(line.split(None, 5)) > 5}
    if text in used:
        raise PermissionError(errno.EACCES, "The process cannot access the file: it is being used", text)


def foreign_open(
    file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any, **more: Any
) -> Any:
    if set(mode) & set("wxa+"):
        checked(file, new="x" in mode)
    if "b" not in mode and encoding in (None, "locale"):
        encoding = "gbk"
    return open_as_before(file, mode, buffering, encoding, *rest, **more)


def foreign_os_open(path: Any, flags: int, *rest: Any, **more: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    if flags & os.O_CREAT:
        checked(path, new=bool(flags & os.O_EXCL))
    return os_open(path, flags, *rest, **more)


def refusing(
    name: str, *, source_is_free: bool = False, target: int | None = None, target_is_free: bool = False
) -> None:
    """Put the checks before a function of `os`."""
    before = getattr(os, name)

    def after(*paths: Any, **more: Any) -> Any:
        if source_is_free:
            free(paths[0])
        if target is not None:
            checked(paths[target], new=name != "replace")
            if target_is_free:
                free(paths[target])
        return before(*paths, **more)

    setattr(os, name, after)


def no_symlink(*_: Any, **__: Any) -> None:
    raise OSError(errno.EINVAL, "A required privilege is not held by the client")


for module in ("fcntl", "resource"):
    sys.modules[module] = None  # type: ignore[assignment]
for missing in ("fork", "forkpty", "sync", "posix_fallocate", "sched_getaffinity", "sched_setaffinity"):
    delattr(os, missing)
builtins.open = io.open = foreign_open
os.open, os.symlink = foreign_os_open, no_symlink
refusing("replace", source_is_free=True, target=1, target_is_free=True)
refusing("rename", source_is_free=True, target=1)
refusing("link", target=1)
refusing("mkdir", target=0)
refusing("unlink", source_is_free=True)
refusing("remove", source_is_free=True)
shutil._use_fd_functions = False  # type: ignore[attr-defined]
multiprocessing.set_start_method("spawn", force=True)
