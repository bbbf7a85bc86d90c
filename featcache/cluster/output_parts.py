"""The parts of the files to label, and the folder with an output file for each part.

A part is some row groups of a parquet file, or a whole file of another format. Its output
`part-00000.parquet` appears complete; then a record of its size and content is written to `_featcache/`. A
part without such a record is not done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from featcache.data.formats.open import KINDS, kind_of
from featcache.errors import SourceError, UsageError
from featcache.prediction.file import LabelledFile
from featcache.prediction.journal import UnlabelledRow
from featcache.system.documents import read_document
from featcache.system.lock import locked
from featcache.system.stores import Remote, is_remote, opened, shown, stamp

PART_ROWS = 1 << 16  # rows at which a part of row groups ends
READERS = 16  # parquet footers, or records, that are read at a time
NOTES = "_featcache"  # readers of a folder of parquet files skip names that begin with _
T = TypeVar("T")
_PART = re.compile(rf"({NOTES}/)?part-[0-9]{{5,}}\.")


@dataclass(frozen=True)
class OutputPart:
    """The rows of one output file.

    Attributes:
        source: path or URL.
        groups: first row group and the one after the last; None: the whole file.
        rows: number of rows; None if the file does not say.
    """

    number: int
    source: str
    kind: str
    groups: tuple[int, int] | None = None
    rows: int | None = None

    @property
    def name(self) -> str:
        """The name of the output file."""
        return f"part-{self.number:05d}.{self.kind}"


@dataclass(frozen=True)
class OutputPlan:
    """Which work the folder is for, see `OutputFolder.begin`."""

    key: str


@dataclass(frozen=True)
class PartRecord:
    """The content of a finished output file, see `LabelledFile`.

    Attributes:
        bytes: size of the file; None if the store does not say.
    """

    rows: int
    bad: int
    truncated: int
    tokens: int
    counts: dict[str, int]
    first_bad: tuple[UnlabelledRow, ...] = ()
    bytes: int | None = None
    mostly_unknown: int = 0
    abstained: int | None = None


def plan_parts(sources: Sequence[str]) -> list[OutputPart]:
    """The parts of some files.

    Raises:
        SourceError: no files, or a file that cannot be read or has an unknown format.
    """
    if not sources:
        raise SourceError("no files to label", hint="name files, or a pattern that matches some: --input")
    with ThreadPoolExecutor(READERS) as pool:
        parts = [part for found in pool.map(_parts_of, sources) for part in found]
    return [replace(part, number=number) for number, part in enumerate(parts)]


def part_kind(source: str) -> str:
    """The format of one file, in which its parts are written, too.

    Raises:
        UsageError: it is none of `KINDS`.
        SourceError: the ending is of no format.
    """
    kind = kind_of(Path(source))
    if kind not in KINDS:
        refusal = SourceError if kind is None else UsageError
        raise refusal(
            f"--engine ray does not read {shown(source)}: it reads {', '.join(KINDS)}",
            hint="label it without --engine ray, or save it in one of these formats",
        )
    return kind


def _parts_of(source: str) -> list[OutputPart]:
    """The parts of one file; their numbers are not known yet."""
    kind = part_kind(source)
    if kind != "parquet":
        return [OutputPart(0, source, kind)]
    sizes = _group_sizes(source)
    parts: list[OutputPart] = []
    start, held = 0, 0
    for group, rows in enumerate(sizes):
        held += rows
        if held >= PART_ROWS or group == len(sizes) - 1:
            parts.append(OutputPart(0, source, kind, (start, group + 1), held))
            start, held = group + 1, 0
    return parts or [OutputPart(0, source, kind, rows=0)]


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
        raise SourceError(
            f"cannot read {shown(source)}: {str(error).splitlines()[0]}",
            hint="the file is damaged, or another program wrote it: write it again",
        ) from error
    return [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]


def states_of(sources: Sequence[str]) -> dict[str, str]:
    """The size and time of each source, which change when it does."""
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
    """The folder of the output, local or in a store; both are written like a store."""

    place: str
    remote: Remote

    @classmethod
    def of(cls, place: str) -> OutputFolder:
        if is_remote(place):
            return cls(place, opened(place, SourceError))
        from fsspec.implementations.local import LocalFileSystem

        path = str(Path(place).absolute())
        return cls(path, Remote(path, "file", LocalFileSystem(), path, SourceError))

    def target(self, part: OutputPart) -> str | Path:
        """The path or URL of a part's output, for `predict_file`."""
        return self.remote.child(part.name).url if is_remote(self.place) else Path(self.place) / part.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse another call with the same output; a store has no locks."""
        if is_remote(self.place):
            yield
            return
        if Path(self.place).is_file():
            raise UsageError(f"{self.place} is a file", hint="with --engine ray the output is a folder")
        with locked(Path(self.place) / NOTES / "plan.json"):
            yield

    def is_to_begin(self, key: str, *, force: bool) -> bool:
        """Whether there is no output of this work to continue with.

        Raises:
            UsageError: the folder has the output of other work, and `force` is not set.
        """
        plan = self._read("plan.json", OutputPlan)
        if plan is not None and plan.key == key and not force:
            return False
        parts = [name for name in self.remote.listing() if _PART.match(name)]
        if parts and (plan is None or not force):
            raise UsageError(
                f"{shown(self.place)} holds the output of other rows, or of another head",
                hint="another --output" + (", or --force to replace what is there" if plan else ""),
            )
        return True

    def begin(self, key: str) -> None:
        """Remove the output, and record the `key` of the work that the folder is for."""
        for name in self.remote.listing():
            if _PART.match(name):
                self.remote.child(name).remove()
        self._write("plan.json", OutputPlan(key))

    def records(self, parts: Sequence[OutputPart]) -> dict[int, PartRecord]:
        """The records of the parts that have an output, by number."""
        there = self.remote.listing()
        written = [part for part in parts if part.name in there and f"{NOTES}/{part.name}.json" in there]
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(lambda part: self.record(part, there[part.name]), written)
            return {part.number: one for part, one in zip(written, found, strict=True) if one is not None}

    def record(self, part: OutputPart, info: Mapping[str, Any] | None) -> PartRecord | None:
        """The record of a part whose output is as `info`; None if it describes another file."""
        if info is None:
            return None
        found = self._read(f"{part.name}.json", PartRecord)
        return found if found is not None and found.bytes == info["size"] else None

    def info(self, part: OutputPart) -> dict[str, Any] | None:
        """What the store knows of a part's output; None if it does not exist."""
        return self.remote.child(part.name).info()

    def finish(self, part: OutputPart, made: LabelledFile) -> PartRecord:
        """Write the record of a part whose output is complete."""
        record = PartRecord(
            rows=made.rows,
            bad=made.bad,
            truncated=made.truncated,
            tokens=made.tokens,
            counts=made.counts,
            first_bad=made.first_bad,
            bytes=(self.info(part) or {}).get("size"),
            mostly_unknown=made.mostly_unknown,
            abstained=made.abstained,
        )
        self._write(f"{part.name}.json", record)
        return record

    def _read(self, name: str, kind: type[T]) -> T | None:
        """A document in `_featcache/`; None if there is none that can be read."""
        note = self.remote.child(f"{NOTES}/{name}")
        try:
            return read_document(kind, note.read() if note.info() is not None else b"", name, ValueError)
        except ValueError:
            return None

    def _write(self, name: str, document: OutputPlan | PartRecord) -> None:
        self.remote.child(f"{NOTES}/{name}").write(json.dumps(asdict(document)).encode())
