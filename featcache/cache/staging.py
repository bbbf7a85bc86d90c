"""Unfinished work: a folder of small committed blocks beside the cache file to be.

A block carries its checksum in its name and is written whole or not at all, so a killed extraction
goes on from the blocks that are there, and several processes can share the work.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from featcache.errors import CacheError
from featcache.fingerprint import canonical
from featcache.system import durable as files
from featcache.system.durable import explained, make_folder, write_file

if TYPE_CHECKING:
    from filelock import FileLock

PLAN = "plan.json"
TRIES = 20  # at removing a folder that others write to
_NAME = re.compile(r"block-([0-9]{8,})-([0-9a-f]{32})\.safetensors")


class Staging:
    """The committed blocks of one unfinished cache file.

    Args:
        folder: made where it is not there.
        plan: what the blocks are blocks of; blocks made under another plan are thrown away.
        joined: the plan is that of another process, and the folder is left as it is.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], *, joined: bool = False) -> None:
        self.folder = folder
        content, note = canonical(plan), folder / PLAN
        # Part of each checksum: a process that still works by another plan cannot pass its blocks off here.
        self._seed = xxhash.xxh3_64_intdigest(content)
        if joined:
            return
        with explained(folder):
            if folder.exists() and (not note.is_file() or note.read_bytes() != content):
                self.discard()
            make_folder(folder)
        if not note.is_file():
            write_file(note, content)

    def committed(self) -> set[int]:
        """Numbers of the blocks whose checksums hold; damaged ones are removed.

        These are durable, even where the process that wrote one was killed before it could say so.

        Raises:
            CacheError: a block that cannot be read; none is removed for that.
        """
        good = set()
        for path in self.folder.glob("block-*.safetensors"):
            if self._is_block(path, _content(path)):
                good.add(int(path.name.split("-")[1]))
            else:
                files.disk.unlink(path)
        with explained(self.folder):
            files.disk.fsync_folder(self.folder)
        return good

    def named(self) -> set[int]:
        """Numbers of the blocks that are there by their names, which costs nothing; `read` checks them."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("block-*.safetensors"))
        return {int(match[1]) for match in found if match}

    def commit(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Make a block durable; on return it survives a crash."""
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_file(self.folder / f"block-{number:08d}-{self._checksum(content)}.safetensors", content)

    def take(self, name: str, content: bytes) -> bool:
        """Commit a block of another machine, as it came; False for one that is damaged or of another plan."""
        fine = self._is_block(Path(name), content)
        if fine:
            write_file(self.folder / name, content)
        return fine

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a committed block.

        Raises:
            CacheError: the block is not there or was changed since.
        """
        from safetensors.numpy import load

        for path in self.folder.glob(f"block-{number:08d}-*.safetensors"):
            content = _content(path)
            if self._is_block(path, content):
                return load(content)
        raise CacheError(
            f"block {number} in {self.folder} is gone or damaged",
            hint="run the same command again; only this block is computed again",
        )

    def claim(self, number: int) -> FileLock | None:
        """The right to work on a block, to be released; None where another process has it, or all is done.

        It is a lock of the operating system, so that of a killed process is free at once. Where a file
        system has no locks, two may make the same block, and the second changes nothing.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / f"claim-{number:08d}.lock", thread_local=False)
        if not self.there:
            return None
        with explained(self.folder):
            try:
                lock.acquire(timeout=0)
            except Timeout:  # an OSError, too
                return None
        if self.there:
            return lock
        lock.release()
        with suppress(CacheError):  # to lock is to make the folder, where it was just removed
            self.discard()
        return None

    @property
    def there(self) -> bool:
        """Whether the work still goes on here: nobody has begun to discard it."""
        return (self.folder / PLAN).is_file()

    def discard(self) -> None:
        """Remove the folder and everything in it; from the first moment on nobody joins the work in it."""
        with explained(self.folder):
            files.disk.unlink(self.folder / PLAN)
            for left in reversed(range(TRIES)):
                for path in list(self.folder.iterdir()):
                    files.disk.unlink(path)
                try:
                    files.disk.rmdir(self.folder)
                    return
                except OSError as error:  # a worker has just written its note, or its claim
                    if not left or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise

    def _is_block(self, path: Path, content: bytes) -> bool:
        """Whether these are the bytes that the block's name promises."""
        named = _NAME.fullmatch(path.name)
        return named is not None and named[2] == self._checksum(content)

    def _checksum(self, content: bytes) -> str:
        return xxhash.xxh3_128_hexdigest(content, seed=self._seed)


def block_number(name: str) -> int | None:
    """The number of the block in a file of that name; None for another file."""
    named = _NAME.fullmatch(name)
    return None if named is None else int(named[1])


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the unfinished work in `folder`; None where there is none that can be read."""
    try:
        plan = json.loads((folder / PLAN).read_bytes())
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CacheError(
            f"cannot read {path}: {error.strerror or error}",
            hint="if it stays so, remove that block; it is then computed again",
        ) from error
