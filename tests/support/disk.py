"""A disk that loses power: `durable.Disk` on a real folder, with a model of what would survive.

Production code runs against real files, so that it reads what it wrote. Beside them every operation goes
into a model of the least that POSIX promises, and from the model come the folders that a power cut may leave:

- the bytes of a file survive if it was fsynced after them; those of its unsynced writes may survive, all or
  some of them, sector by sector, or be zeros, or what lay on the disk before, and the file may end anywhere;
- a name survives if its folder was fsynced after it was given; unsynced changes of names may survive, each
  by itself and in any order, also before the data of the file they name. A rename is never half done in
  that its target is missing, but the old name may still be there as well;
- a folder's names are worth nothing unless the folder's own name survives.
"""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from featcache.system import durable as files

SECTOR = 512
Write = tuple[int, bytes | None]  #: offset and content; None: the file ends at offset
Change = tuple[str | None, str | None, int]  #: name given up, name taken, which file or folder


Tree = dict[str, bytes]


def plant(tree: Tree, target: Path) -> None:
    """Write the files and folders of `tree` into the new folder `target`."""
    target.mkdir()
    for name, content in tree.items():
        if name.endswith("/"):
            (target / name).mkdir()
        else:
            (target / name).write_bytes(content)


@dataclass
class File:
    """The model of a file: its durable bytes, and the writes since the last fsync."""

    durable: bytes = b""
    pending: list[Write] = field(default_factory=list)

    def synced(self) -> bytes:
        """The bytes with all pending writes."""
        content = bytearray(self.durable)
        for offset, written in self.pending:
            apply(content, offset, written)
        return bytes(content)


@dataclass
class Folder:
    """The model of a folder: its durable names, and the changes since the last fsync."""

    durable: dict[str, int] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def now(self) -> dict[str, int]:
        """The names with all pending changes."""
        names = dict(self.durable)
        for change in self.pending:
            rename(names, change)
        return names


def apply(content: bytearray, offset: int, written: bytes | None) -> None:
    """Write into `content` at `offset`; None ends the content there."""
    end = offset + len(written or b"")
    content.extend(bytes(max(0, end - len(content))))
    if written is None:
        del content[offset:]
    else:
        content[offset:end] = written


def rename(names: dict[str, int], change: Change, torn: bool = False) -> None:
    """Apply a change of names; with `torn` the old name stays."""
    gone, taken, node = change
    if taken is not None:
        names[taken] = node
    if gone is not None and not torn:
        names.pop(gone, None)


class PowerCut(BaseException):
    """The power is off; derived from BaseException so that no `except Exception` catches it."""


class _Raw(io.FileIO):
    """Records what reaches the operating system, after Python's buffer; a write may be short."""

    disk: FaultDisk
    node: int

    def write(self, content: Any) -> int:
        content = bytes(content)
        offset = self.tell()
        content = content[: self.disk.shorten(len(content))]
        self.disk.step(
            f"write {self.name}", lambda: self.disk.files[self.node].pending.append((offset, content))
        )
        return super().write(content)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        self.disk.step(f"truncate {self.name}", lambda: self.disk.grow(self.node, size))
        return super().truncate(size)


class FaultDisk(files.Disk):
    """Everything under `root` is modelled; what is there already is durable.

    Args:
        root: the folder that survives; its own name is safe.
        cut_at: the operation, counted from 1, that power fails before; None: never.
        without: (file, function, line) of the one `fsync` in production code that is to do nothing.
        short: seed by which writes are short ones; None: none is.
        watch: called before every operation, with the disk, to look at it as it is; true: power off.
    """

    def __init__(
        self,
        root: Path,
        *,
        cut_at: int | None = None,
        without: tuple[str, str, int] | None = None,
        short: int | None = None,
        watch: Callable[[FaultDisk], bool] = lambda _: False,
    ) -> None:
        self.root, self.cut_at, self.without, self.watch = root, cut_at, without, watch
        self.files: dict[int, File] = {}
        self.folders: dict[int, Folder] = {}
        self.log: list[str] = []
        self.sites: set[tuple[str, str, int]] = set()
        self.off = False
        self._short = None if short is None else random.Random(short)
        self._lock = threading.RLock()
        self._number = 0
        self.top = self._load(root)

    # -- the operations ---------------------------------------------------------------------------

    def open(self, path: Path, mode: str) -> BinaryIO:
        if "x" in mode or "w" in mode:
            self.step(f"create {path.name}")
        raw = _Raw(path, mode.replace("b", ""))
        raw.disk = self
        if "x" in mode or "w" in mode:
            raw.node = self._new(self.files, File())
            self._change(path.parent, (None, path.name, raw.node))
        else:
            raw.node = self._node(path)
        return cast(BinaryIO, io.BufferedRandom(raw) if raw.readable() else io.BufferedWriter(raw))

    def reserve(self, file: BinaryIO, nbytes: int) -> None:
        raw = cast(io.BufferedRandom, file).raw
        raw.truncate(nbytes)

    def fsync(self, file: BinaryIO) -> None:
        file.flush()
        raw = cast(_Raw, cast(io.BufferedRandom, file).raw)

        def act() -> None:
            node = self.files[raw.node]
            node.durable, node.pending = node.synced(), []

        self._sync(f"fsync {raw.name}", act)

    def fsync_folder(self, folder: Path) -> None:
        if folder != self.root and self.root not in folder.parents:
            return

        def act() -> None:
            node = self._folder(folder)
            node.durable, node.pending = node.now(), []

        self._sync(f"fsync {folder.name}/", act)

    def mkdir(self, folder: Path) -> None:
        self.step(f"mkdir {folder.name}")
        if not folder.exists():
            super().mkdir(folder)
            self._change(folder.parent, (None, folder.name, self._new(self.folders, Folder())))

    def replace(self, source: Path, target: Path) -> None:
        self.step(f"replace {target.name}")
        node = self._node(source)
        super().replace(source, target)
        self._change(source.parent, (source.name, target.name, node))

    def link(self, source: Path, target: Path) -> None:
        self.step(f"link {target.name}")
        super().link(source, target)
        self._change(target.parent, (None, target.name, self._node(source)))

    def unlink(self, path: Path) -> None:
        self.step(f"unlink {path.name}")
        if path.exists():
            super().unlink(path)
            self._change(path.parent, (path.name, None, 0))

    def rmdir(self, folder: Path) -> None:
        self.step(f"rmdir {folder.name}")
        super().rmdir(folder)
        self._change(folder.parent, (folder.name, None, 0))

    # -- what a power cut leaves ------------------------------------------------------------------

    def survivors(self, draw: random.Random, how: str) -> Tree:
        """One of the folders that a power cut may leave now: contents by path, those of folders end in `/`.

        Args:
            how: `least` (nothing unsynced), `all`, `names` (names, but not the data), `data` (the other way
                round), or `any` (chance decides of each name and each sector).
        """
        with self._lock:
            return dict(self._surviving(self.folders[self.top], draw, how, ""))

    def _surviving(
        self, folder: Folder, draw: random.Random, how: str, at: str
    ) -> Iterator[tuple[str, bytes]]:
        names = dict(folder.durable)
        for change in folder.pending:
            if how in ("all", "names") or (how == "any" and draw.random() < 0.5):
                rename(names, change, torn=how == "any" and draw.random() < 0.2)
        for name, node in names.items():
            if node in self.folders:
                yield f"{at}{name}/", b""
                yield from self._surviving(self.folders[node], draw, how, f"{at}{name}/")
            else:
                yield at + name, surviving(self.files[node], draw, how)

    def revive(self, cut_at: int | None = None) -> None:
        """Go on with another process: it finds all names and bytes, but no more is durable than before."""
        self.off, self.log, self.cut_at = False, [], cut_at

    # -- keeping the model ------------------------------------------------------------------------

    def step(self, what: str, act: Callable[[], None] = lambda: None) -> None:
        """One operation: looked at, counted, refused when power is gone; then `act`."""
        with self._lock:
            if not self.off:
                self.off = self.watch(self)
            self.log.append(what)
            if self.off or len(self.log) == self.cut_at:
                self.off = True
                raise PowerCut(what)
            act()

    def shorten(self, length: int) -> int:
        return length if self._short is None or length < 2 else self._short.randint(1, length)

    def grow(self, node: int, size: int) -> None:
        length = len(self.files[node].synced())
        if size > length:
            self.files[node].pending.append((length, bytes(size - length)))
        elif size < length:
            self.files[node].pending.append((size, None))

    def _sync(self, what: str, act: Callable[[], None]) -> None:
        site = _site()
        self.sites.add(site)
        self.step(what, act if site != self.without else lambda: None)

    def _change(self, folder: Path, change: Change) -> None:
        with self._lock:
            self._folder(folder).pending.append(change)

    def _new(self, among: dict[int, Any], node: Any) -> int:
        self._number += 1
        among[self._number] = node
        return self._number

    def _node(self, path: Path) -> int:
        node, at = self.top, self.root
        for name in path.relative_to(self.root).parts:
            at = at / name
            folder = self.folders[node]
            if name not in folder.now():  # made without this disk, and not durable
                folder.pending.append((None, name, self._adopt(at)))
            node = folder.now()[name]
        return node

    def _adopt(self, path: Path) -> int:
        if path.is_dir():
            return self._new(self.folders, Folder())
        return self._new(self.files, File(b"", [(0, path.read_bytes())]))

    def _folder(self, path: Path) -> Folder:
        return self.folders[self._node(path)]

    def _load(self, path: Path) -> int:
        if path.is_dir():
            return self._new(self.folders, Folder({each.name: self._load(each) for each in path.iterdir()}))
        return self._new(self.files, File(path.read_bytes()))


def surviving(file: File, draw: random.Random, how: str) -> bytes:
    """One content that a file may have after a power cut."""
    whole = file.synced()
    if not file.pending or how in ("all", "data"):
        return whole
    if how in ("least", "names"):
        return file.durable
    ends = [len(file.durable), *(offset + len(written or b"") for offset, written in file.pending)]
    size = draw.choice(ends)
    touched = {
        sector
        for offset, written in file.pending
        for sector in range(offset // SECTOR, (offset + len(written or b"")) // SECTOR + 1)
    }
    content = bytearray(file.durable[:size].ljust(size, b"\0"))
    for sector in touched:
        start, end = sector * SECTOR, min((sector + 1) * SECTOR, size)
        fate = draw.choice(["new", "new", "old", "torn", "junk"])
        if fate == "torn":
            end = draw.randint(min(start, end), end)
        if fate in ("new", "torn"):
            content[start:end] = whole[start:end].ljust(max(end - start, 0), b"\0")
        elif fate == "junk" and start >= len(file.durable):
            content[start:end] = draw.randbytes(max(end - start, 0))
    return bytes(content)


def _site() -> tuple[str, str, int]:
    """Where production code asked for the fsync: the first frame past the disk and its wrappers."""
    frame = sys._getframe(3)
    while frame.f_code.co_name in ("fsync_file", "fsync_folder") and frame.f_back:
        frame = frame.f_back
    return Path(frame.f_code.co_filename).name, frame.f_code.co_name, frame.f_lineno


class Quick(files.Disk):
    """A real disk without the waiting, for what is not put to the test."""

    def fsync(self, file: BinaryIO) -> None:
        file.flush()

    def fsync_folder(self, folder: Path) -> None:
        pass


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory, where the system has such a thing: thousands of folders come and go in it."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="featcache-", dir=where) as name:
        yield Path(name)


@contextmanager
def plugged_in(disk: files.Disk) -> Iterator[None]:
    """Production code works on `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "disk", disk)
        yield
