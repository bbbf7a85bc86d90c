"""Cache files and what is read from them: features of one split, with the record of how they were made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from featcache.cache import shards
from featcache.cache.description import SHARD
from featcache.cache.local import LocalFiles
from featcache.cache.record import CacheRecord, Provenance, read_record, write_record
from featcache.cache.seal import HINT
from featcache.cache.sealed_file import SealedFile
from featcache.cache.view_names import join_views, split_view
from featcache.errors import CacheError, CacheMiss, CorruptCache
from featcache.fingerprint import (
    REGRESSION,
    SINGLE_LABEL,
    CacheDocument,
    EncoderDocument,
    Request,
    task_of,
)
from featcache.system.lock import locked
from featcache.system.sharded_array import join_columns
from featcache.system.text import html_table

SHOWN_LABELS = 12
RECORD_WAIT = 10.0  # seconds; a record is written in some milliseconds
STATES = "states"  # the folder of token states, beside the features of the same data and model
_STATES = re.compile(r".+-cut[0-9]+-[0-9a-f]{12}\.h5")


@dataclass(frozen=True)
class Features:
    """One view of one split, or several joined ones, from a sealed file.

    Attributes:
        view: its stored name, or `last/cls,-3/mean` of several.
        x: `[N, D]` in the storage dtype, memory-mapped, checksums verified; of a cache of several shards
            a `ShardedColumn`, and of several views `JoinedColumns`, which are read like an array, some
            rows at a time.
        y: int64 `[N]`, indexes into `label_names`; multi-label: multi-hot uint8 `[N, C]`; numbers: float64
            `[N]`, without names.
        row_hash: uint8 `[N, 32]`, likewise.
        encoder: the encoder document the features were made with.
    """

    split: str
    view: str
    x: np.ndarray
    y: np.ndarray
    label_names: tuple[str, ...]
    row_hash: np.ndarray
    encoder: EncoderDocument
    fingerprint: str
    path: Path

    def __repr__(self) -> str:
        rows, width = self.x.shape
        return f"Features({self.split} {self.view}, {rows:,} rows of {width:,} {self.x.dtype})"

    def _repr_html_(self) -> str:
        """Size and labels, for a notebook."""
        title = f"{self.split} {self.view}: x {list(self.x.shape)} {self.x.dtype}, from {self.path.name}"
        if task_of(self.y) == REGRESSION:
            ends = ("numbers", f"{self.y.min():g}", f"{self.y.max():g}")
            return html_table(("labels", "from", "to"), [ends], title)
        names, several = self.label_names, self.y.ndim == 2
        counts = self.y.sum(0) if several else np.bincount(self.y[self.y >= 0], minlength=len(names))
        lines = sorted(zip(names, counts.tolist(), strict=True), key=lambda line: -line[1])
        more = [(f"{len(lines) - SHOWN_LABELS} more labels", "")] if len(lines) > SHOWN_LABELS else []
        shown = [(name, f"{rows:,}") for name, rows in lines[:SHOWN_LABELS]]
        return html_table(("label", "rows"), [*shown, *more], title)


class CacheFile:
    """One sealed file with its record.

    Args:
        backend: of the cache that the file belongs to; by default the file is read from this machine alone.

    Attributes:
        asked: stored names of views by the names that the settings which found the file have for them.

    Raises:
        CorruptCache: see `SealedFile`; or a whole file that does not hold what it says it does.
        CacheError: see `SealedFile`; or what bears that name is no file.
    """

    def __init__(self, path: Path, backend: LocalFiles | None = None) -> None:
        self.path = path
        self.asked: Mapping[str, str] = {}
        backend = backend or LocalFiles()
        self.sealed = backend.open(path)
        if self.sealed.description.format == SHARD:
            whole = shards.owner_of(path) or path.parent
            raise CacheError(f"{path} is a shard and no cache by itself", hint=f"its cache is {whole.name}")
        if self.sealed.description.shards is not None:
            self.sealed = shards.ShardedFile(self.sealed, backend.fetch_shard)
        self.document = _document(self.sealed)

    @property
    def fingerprint(self) -> str:
        return self.sealed.description.fingerprint

    @property
    def split(self) -> str:
        return self.sealed.description.split

    @property
    def views(self) -> tuple[str, ...]:
        return self.document.views

    @property
    def rows(self) -> int:
        return self.document.rows.count

    @property
    def truncated(self) -> int:
        """How many texts were truncated."""
        return self.sealed.total("truncated")

    @property
    def tokens(self) -> int:
        """Tokens of all rows, as they were encoded."""
        return self.sealed.total("n_tokens")

    @property
    def max_length(self) -> int:
        return self.document.encoder.max_length

    @cached_property
    def record(self) -> CacheRecord:
        """The `.json` beside the file; an empty record where it is lost or unreadable."""
        return read_record(self.path, self.fingerprint)

    def stored_view(self, asked: str) -> str:
        """The name in this file of a view by the name it was asked for, e.g. `last/cls` for `12/cls`.

        Of several views, joined by commas, in the order of the file. A name that was never asked for is
        returned as it is.
        """
        if asked in self.asked:
            return self.asked[asked]
        found = [name for part in split_view(asked) for name in split_view(self._stored(part))]
        places = {name: place for place, name in enumerate(self.views)}
        return join_views(sorted(found, key=lambda name: places.get(name, -1)))

    def _stored(self, asked: str) -> str:
        """`stored_view` of a name without commas."""
        if asked in self.asked:
            return self.asked[asked]
        known = (request.views.get(asked) for request in self.record.requests)
        return next(filter(None, known), asked)

    def features(self, view: str) -> Features:
        """One view with its labels, or several side by side.

        Raises:
            CacheMiss: the file has no such view.
            CorruptCache: damaged bytes.
        """
        wanted = split_view(view)
        if missing := [name for name in wanted if name not in self.views]:
            views = ",".join([*self.views, *missing])
            raise CacheMiss(
                f"{self.path} has views {', '.join(self.views)}, not {', '.join(missing)}",
                hint=f"make them with the same flags: featcache extract --all-splits --views={views}",
            )
        labels, names = np.asarray(self.sealed.column("labels")), self.document.labels.names
        if task_of(labels) != (self.document.labels.kind or SINGLE_LABEL):
            raise CorruptCache(f"{self.path} has labels of another type than it says", hint=HINT)
        if task_of(labels) == REGRESSION:
            if not np.isfinite(labels).all():
                raise CorruptCache(f"{self.path} has labels that are no finite numbers", hint=HINT)
        elif labels.ndim == 1 and labels.size and not -1 <= labels.min() <= labels.max() < len(names):
            raise CorruptCache(f"{self.path} has labels that are none of its {len(names)} names", hint=HINT)
        return Features(
            split=self.split,
            view=view,
            x=join_columns([self.sealed.column(view_column(name)) for name in wanted]),
            y=labels,
            label_names=names,
            row_hash=self.sealed.column("row_hash"),
            encoder=self.document.encoder,
            fingerprint=self.fingerprint,
            path=self.path,
        )


def view_column(view: str) -> str:
    """`last/cls` -> `views/last-cls`, the dataset's name in the file."""
    return "views/" + view.replace("/", "-")


def is_states(path: Path) -> bool:
    """Whether a file of this name holds token states and not features."""
    return path.parent.name == STATES and _STATES.fullmatch(path.name) is not None


def add_request(file: CacheFile, request: Request, made: Provenance | None = None) -> None:
    """Note in the record of `file` that it answers `request`, and how it was made.

    Raises:
        CacheError: the file system refuses, or another process makes the file anew.
    """
    with locked(file.path, RECORD_WAIT):  # several processes may note something at once
        record = read_record(file.path, file.fingerprint).with_request(request)
        write_record(file.path, record if made is None else replace(record, made=made))


def _check_shapes(document: CacheDocument, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError for a column that does not fit the rows and labels of the document."""
    rows = document.rows.count
    for name, shape in shapes.items():
        fine = shape[:1] == (rows,)
        if name.startswith("views/"):
            fine = fine and len(shape) == 2
        elif name in ("row_hash", "labels"):
            several = (rows, 32 if name == "row_hash" else len(document.labels.names))
            fine = shape == several or (name == "labels" and shape == (rows,))
        if not fine:
            raise ValueError(f"column {name} is {list(shape)} for {rows} rows")


def _document(sealed: SealedFile) -> CacheDocument:
    """The cache document of a sealed file.

    Raises:
        CorruptCache: the seal holds, but the description lacks what is asked of it later.
    """
    try:
        document = CacheDocument.from_json(sealed.description.document)
        wanted = {view_column(view) for view in document.views} | {"labels", "row_hash", "truncated"}
        if missing := wanted - set(sealed.names):
            raise ValueError(f"without column {min(missing)}")
        _check_shapes(document, sealed.shapes)
    except ValueError as error:
        raise CorruptCache(
            f"{sealed.path} does not hold what its description says: {error}",
            hint=HINT,
        ) from error
    return document
