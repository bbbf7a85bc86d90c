"""Unfinished work: a folder of small committed blocks beside the cache file to be.

A block carries its checksum in its name and is written whole or not at all, so a killed extraction
goes on from the blocks that are there. The lock keeps a second writer out and says who holds it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from featcache.errors import CacheError
from featcache.files import explained, write_file
from featcache.fingerprint import canonical


class Staging:
    """The committed blocks of one unfinished cache file.

    Args:
        folder: made where it is not there.
        plan: what the blocks are blocks of; blocks made under another plan are thrown away.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        content, note = canonical(plan), folder / "plan.json"
        if folder.exists() and (not note.is_file() or note.read_bytes() != content):
            self.discard()
        if not note.is_file():
            write_file(note, content)

    def committed(self) -> set[int]:
        """Numbers of the blocks whose checksums hold; damaged ones are removed."""
        good = set()
        for path in self.folder.glob("block-*.safetensors"):
            if _checksum(path.read_bytes()) == path.stem.rpartition("-")[2]:
                good.add(_number(path))
            else:
                path.unlink()
        return good

    def commit(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Make a block durable; on return it survives a crash."""
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_file(self.folder / f"block-{number:08d}-{_checksum(content)}.safetensors", content)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a committed block.

        Raises:
            CacheError: the block is not there or was changed since.
        """
        from safetensors.numpy import load

        for path in self.folder.glob(f"block-{number:08d}-*.safetensors"):
            content = path.read_bytes()
            if _checksum(content) == path.stem.rpartition("-")[2]:
                return load(content)
        raise CacheError(
            f"block {number} in {self.folder} is gone or damaged",
            hint="run the same command again; only this block is computed again",
        )

    def discard(self) -> None:
        """Remove the folder and everything in it."""
        with explained(self.folder):
            shutil.rmtree(self.folder)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the writer's lock of `target`; the lock of a dead process counts as free.

    Raises:
        CacheError: another process holds it; says which, where and since when.
    """
    from filelock import FileLock, Timeout

    holder = target.with_suffix(".holder")
    lock = FileLock(target.with_suffix(".lock"))
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise CacheError(
                f"another process is writing {target}: {_who(holder)}",
                hint="wait for it, or stop it; what it finished is kept",
            ) from None
    try:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        write_file(holder, canonical(who))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        who = json.loads(holder.read_bytes())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has only just begun"


def _number(path: Path) -> int:
    return int(path.name.split("-")[1])


def _checksum(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)
