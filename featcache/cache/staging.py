"""The folder of committed units of an unfinished cache file, beside the place of that file.

The file of a unit has its checksum in its name and is written completely or not at all. So an interrupted
extraction continues from the units that exist, and several processes can share the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash

from featcache.errors import CacheError
from featcache.fingerprint import canonical
from featcache.plain_file import LONGEST_ARRAYS, read_plain
from featcache.system import durable as files
from featcache.system.documents import json_document, read_document
from featcache.system.durable import (
    TEMPORARY,
    explained,
    make_own_folder,
    remove_own_folder,
    remove_temporaries,
    write_file,
)
from featcache.system.lock import ProcessLock

PLAN = "plan.json"
T = TypeVar("T")
_NAME = re.compile(r"block-([0-9]{8,})-([0-9a-f]{32})\.safetensors")
_OURS = re.compile(  # what this module and `extraction.worker_folder` write
    rf"{re.escape(PLAN)}|block-.*|claim-[0-9]+\.(lock|lease).*|worker-.+\.json|sealed-.+"
    rf"|{re.escape(TEMPORARY)}.+"
)


class Staging:
    """The committed units of one unfinished cache file.

    Args:
        folder: made if it does not exist.
        plan: describes the work that the units are part of, a dataclass or a mapping that JSON can hold;
            units of another plan are removed.
        joined: another process wrote the plan; the folder is not changed.
    """

    def __init__(self, folder: Path, plan: object, *, joined: bool = False) -> None:
        self.folder = folder
        content, plan_path = canonical(json_document(plan)), folder / PLAN
        # Part of each checksum, so that the units of a process that still works on another plan do not count.
        self._seed = xxhash.xxh3_64_intdigest(content)
        self._claims: dict[int, ProcessLock] = {}
        if joined:
            return
        with explained(folder):
            if folder.is_dir() and not folder.is_symlink() and not _holds(plan_path, content):
                self.discard()
            make_own_folder(folder)
        if not plan_path.is_file():
            write_file(plan_path, content)

    def committed(self) -> set[int]:
        """Numbers of the units whose checksums are right; damaged units are removed.

        They are durable on return, even if the process that wrote one was killed inside `commit`.

        Raises:
            CacheError: a unit cannot be read; it is not removed.
        """
        good = set()
        for path in self.folder.glob("block-*.safetensors"):
            if self._is_unit(path, _content(path)):
                good.add(int(path.name.split("-")[1]))
            else:
                files.disk.unlink(path)
        with explained(self.folder):
            files.disk.fsync_folder(self.folder)
        return good

    def named(self) -> set[int]:
        """Numbers of the units that have a file; their contents are not checked, `read` checks them."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("block-*.safetensors"))
        return {int(match[1]) for match in found if match}

    def commit(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a unit; on return it is durable.

        Raises:
            CacheError: the disk is full, or the file system refuses for another reason.
        """
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_file(self.folder / f"block-{number:08d}-{self._checksum(content)}.safetensors", content)

    def take(self, name: str, content: bytes) -> bool:
        """Commit a unit from another machine, given the name and the bytes of its file.

        Returns:
            False if it is damaged or belongs to another plan; it is then not written.
        """
        valid = self._is_unit(Path(name), content)
        if valid:
            write_file(self.folder / name, content)
        return valid

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a committed unit.

        Raises:
            CacheError: the unit is missing or damaged, or cannot be read.
        """
        from safetensors.numpy import load

        for path in self.folder.glob(f"block-{number:08d}-*.safetensors"):
            content = _content(path)
            if self._is_unit(path, content):
                return load(content)
        raise CacheError(
            f"unit {number} in {self.folder} is missing or damaged",
            hint="run the same command again; only this unit is computed again",
        )

    def claim(self, number: int) -> ProcessLock | None:
        """Lock a unit for this process; the caller releases the lock.

        The lock of a killed process is free again, see `ProcessLock`. If two processes make the same unit,
        only time is lost.

        Returns:
            None if another process has locked the unit, or if the folder is being discarded.
        """
        if not self.there:
            return None
        # Kept for the next attempt: it remembers since when a process of another host gave no sign of life.
        lock = self._claims.setdefault(number, ProcessLock(self.folder / f"claim-{number:08d}.lock"))
        with explained(self.folder):
            if not lock.acquire():
                return None
        del self._claims[number]
        if self.there:
            return lock
        lock.release()
        with suppress(CacheError):  # locking makes the folder again if it was just removed
            self.discard()
        return None

    @property
    def there(self) -> bool:
        """Whether the folder has its plan, that is, no process has begun to discard it."""
        return (self.folder / PLAN).is_file()

    def discard(self) -> None:
        """Remove the folder and what featcache made in it; see `discard_work`."""
        discard_work(self.folder)

    def _is_unit(self, path: Path, content: bytes) -> bool:
        """Whether `path` has the name of a unit with the checksum of `content`."""
        named = _NAME.fullmatch(path.name)
        return named is not None and named[2] == self._checksum(content)

    def _checksum(self, content: bytes) -> str:
        return xxhash.xxh3_128_hexdigest(content, seed=self._seed)


def unit_number(name: str) -> int | None:
    """The number of the unit in a file of that name; None for another file."""
    named = _NAME.fullmatch(name)
    return None if named is None else int(named[1])


def partial_folder(target: Path) -> Path:
    """The folder of the unfinished work on a cache file."""
    return target.with_suffix(".partial")


def discard_work(folder: Path) -> None:
    """Remove a folder of unfinished work; the plan goes first, so that no process joins the work.

    Raises:
        CacheError: the folder holds files that featcache did not make, or the file system refuses.
    """
    with explained(folder):
        if not folder.is_symlink():
            files.disk.unlink(folder / PLAN)
        remove_own_folder(folder, _OURS)


@contextmanager
def unfinished_work(target: Path, plan: object, note: Callable[[str], None]) -> Iterator[Staging]:
    """The work on a cache file, begun or continued; removed when the `with` block ends without an error.

    The caller holds the lock of `target`.

    Args:
        target: the cache file to be written in the `with` block.
        note: called with a message if the folder cannot be removed.
    """
    remove_temporaries(target)  # of a process that was killed while it wrote this very file
    staging = Staging(partial_folder(target), plan)
    yield staging
    try:
        staging.discard()
    except CacheError as error:  # the file is whole; what is left goes with `cache gc`
        note(error.what)


def read_plan(folder: Path, kind: type[T]) -> T | None:
    """The plan of the unfinished work in `folder`; None where there is none, or not exactly of this kind."""
    try:
        content = read_plain(folder / PLAN)
        plan = read_document(kind, content, "the plan", CacheError)
    except (OSError, CacheError):
        return None
    return plan if canonical(json_document(plan)) == content else None


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read_plain(path) == content
    except OSError:
        return False


def _content(path: Path) -> bytes:
    try:
        return read_plain(path, LONGEST_ARRAYS)
    except OSError as error:
        raise CacheError(
            f"cannot read {path}: {error.strerror or error}",
            hint="if the error persists, remove that file; its rows are then computed again",
        ) from error
