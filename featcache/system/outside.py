"""What the machine did to a program, as an error that says what to do; the last place that explains it."""

from __future__ import annotations

import sys
from typing import Any

from featcache.errors import DiskError, FeatcacheError
from featcache.system.durable import disk_error
from featcache.system.packages import package_error


def outside_error(error: Exception) -> FeatcacheError | None:
    """An error of the machine that nothing closer to it has explained; None for any other."""
    if isinstance(error, FeatcacheError):
        return error
    if isinstance(error, OSError):
        return disk_error(error, f"use {error.filename or 'a file or a connection'}")
    if isinstance(error, MemoryError):
        return FeatcacheError("there is not enough memory", hint="end other programs, or use fewer rows")
    torch: Any = sys.modules.get("torch")  # only where it is imported can it have raised the error
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return FeatcacheError(
            "the GPU has not enough free memory",
            hint="end other programs that use it, or compute on the processor: --device cpu",
        )
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        what = f"the name {ascii(error.object)[:200]} is not UTF-8"
        return DiskError(what, hint="rename that file or folder")
    return package_error(error)
