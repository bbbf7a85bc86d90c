"""Blocks of many files to be labelled, and the folder that has an output file for each.

A block is some row groups of a parquet file, or a whole file of another form. Its output `part-00000.parquet`
appears whole; a note in `_featcache/` then says how large it is and what is in it. What has no such note is
not done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featcache.data.formats.open import kind_of
from featcache.errors import CacheError, SourceError, UsageError
from featcache.prediction.file import LabelledFile
from featcache.system.lock import locked
from featcache.system.stores import Remote, is_remote, opened, shown, stamp

BLOCK_ROWS = 1 << 16  # rows at which a block of row groups ends
READERS = 16  # parquet footers, or notes, that are read at a time
NOTES = "_featcache"  # readers of a folder of parquet files leave out what begins so
_PART = re.compile(rf"({NOTES}/)?part-[0-9]{{5,}}\.")

_Part = tuple[str, str, tuple[int, int] | None, int | None]  # the arguments of `Block` after its number


@dataclass(frozen=True)
class Block:
    """What becomes one output file.

    Attributes:
        source: path or URL.
        groups: first row group and the one after the last; None: the whole file.
        rows: where the file says; else None.
    """

    number: int
    source: str
    kind: str
    groups: tuple[int, int] | None = None
    rows: int | None = None

    @property
    def name(self) -> str:
        """Of the output."""
        return f"part-{self.number:05d}.{self.kind}"


def divide(sources: Sequence[str]) -> list[Block]:
    """The blocks of some files.

    Raises:
        SourceError: no files, one that cannot be read, or of an unknown form.
    """
    if not sources:
        raise SourceError("no files to label")
    with ThreadPoolExecutor(READERS) as pool:
        parts = [part for found in pool.map(_parts, sources) for part in found]
    return [Block(number, *part) for number, part in enumerate(parts)]


def _parts(source: str) -> list[_Part]:
    kind = kind_of(Path(source))
    if kind is None:
        raise SourceError(f"{shown(source)}: its ending does not say what it holds")
    if kind != "parquet":
        return [(source, kind, None, None)]
    sizes = _group_sizes(source)
    parts: list[_Part] = []
    start, held = 0, 0
    for group, rows in enumerate(sizes):
        held += rows
        if held >= BLOCK_ROWS or group == len(sizes) - 1:
            parts.append((source, kind, (start, group + 1), held))
            start, held = group + 1, 0
    return parts or [(source, kind, None, 0)]


def _group_sizes(source: str) -> list[int]:
    """Rows of each row group; of a URL only the end of the file is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not is_remote(source):
            facts = pq.read_metadata(source)
        else:
            remote = opened(source, SourceError)
            with remote.fs.open(remote.path, "rb") as file:
                facts = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"cannot read {shown(source)}: {str(error).splitlines()[0]}") from error
    return [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]


def states_of(sources: Sequence[str]) -> dict[str, str]:
    """Of each source, what changes when it does."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(sources, pool.map(_state_of, sources), strict=True))


def _state_of(source: str) -> str:
    if is_remote(source):
        return stamp(opened(source, SourceError).info() or {})
    status = Path(source).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


# -- the folder of the output -----------------------------------------------------------------------


@dataclass(frozen=True)
class OutputFolder:
    """Where the output lies, a folder or one in a store; both are written to as to a store."""

    place: str
    remote: Remote

    @classmethod
    def of(cls, place: str) -> OutputFolder:
        if is_remote(place):
            return cls(place, opened(place, SourceError))
        from fsspec.implementations.local import LocalFileSystem

        path = str(Path(place).absolute())
        return cls(path, Remote(path, "file", LocalFileSystem(), path, SourceError))

    def target(self, block: Block) -> str | Path:
        """Of a block's output, as `predict_file` takes it."""
        return self.remote.child(block.name).url if is_remote(self.place) else Path(self.place) / block.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Two calls with one output would do all twice; a store has no locks."""
        if is_remote(self.place):
            yield
            return
        if Path(self.place).is_file():
            raise UsageError(f"{self.place} is a file", hint="with --engine ray the output is a folder")
        try:
            with locked(Path(self.place) / NOTES / "plan.json"):
                yield
        except CacheError as error:
            if isinstance(error.__cause__, OSError):
                raise SourceError(error.what, hint=error.hint) from error
            raise

    def is_to_begin(self, key: str, *, force: bool) -> bool:
        """Whether nothing is there to go on with.

        Raises:
            UsageError: something else is there, and is not to be replaced.
        """
        plan = self._read("plan.json")
        if plan is not None and plan.get("key") == key and not force:
            return False
        parts = [name for name in self.remote.listing() if _PART.match(name)]
        if parts and (plan is None or not force):
            raise UsageError(
                f"{shown(self.place)} holds the output of other rows, or of another head",
                hint="another --output" + (", or --force to replace what is there" if plan else ""),
            )
        return True

    def begin(self, key: str) -> None:
        """Remove what is there, and note whose the folder is from now on."""
        for name in self.remote.listing():
            if _PART.match(name):
                self.remote.child(name).remove()
        self._write("plan.json", {"key": key})

    def notes(self, blocks: Sequence[Block]) -> dict[int, dict[str, Any]]:
        """What was noted of those blocks whose output is there, as large as noted."""
        there = self.remote.listing()
        written = [block for block in blocks if block.name in there and f"{NOTES}/{block.name}.json" in there]
        with ThreadPoolExecutor(READERS) as pool:
            said = pool.map(lambda block: self.note(block, there[block.name]), written)
            return {block.number: one for block, one in zip(written, said, strict=True) if one is not None}

    def note(self, block: Block, info: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """What was noted of a block whose output is as `info`; None where that is not what is there."""
        said = self._read(f"{block.name}.json") if info is not None else None
        return said if said is not None and info is not None and said.get("bytes") == info["size"] else None

    def info(self, block: Block) -> dict[str, Any] | None:
        """What the store says of a block's output; None where it is not there."""
        return self.remote.child(block.name).info()

    def finish(self, block: Block, said: LabelledFile) -> dict[str, Any]:
        """Note a block whose output is there."""
        names = ("rows", "bad", "truncated", "tokens", "counts")
        note = {
            **{name: getattr(said, name) for name in names},
            "first_bad": [asdict(row) for row in said.first_bad],
            "bytes": (self.info(block) or {}).get("size"),
        }
        self._write(f"{block.name}.json", note)
        return note

    def _read(self, name: str) -> dict[str, Any] | None:
        """A note; None where there is none that can be read."""
        note = self.remote.child(f"{NOTES}/{name}")
        try:
            found = json.loads(note.read() if note.info() is not None else b"")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self.remote.child(f"{NOTES}/{name}").write(json.dumps(content).encode())
