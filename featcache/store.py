"""The cache folder: which sealed files there are, and which one serves a request.

`cache/<dataset>/<model>/<split>-<fingerprint, 12 hex>.h5` holds the features. Beside it stands a
`.json` record of how it came to be (when, how long, on what) and of the *requests* it answered: the
source's content hashes and the settings as asked, by which a repeated request is answered without
loading a model or a dataset. The record can be lost; the features then are found by their rows.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import CacheError, CacheMiss
from featcache.files import explained, write_file
from featcache.fingerprint import Difference, canonical, differences
from featcache.fingerprint import fingerprint as document_hash
from featcache.sealed import SealedFile
from featcache.staging import locked


@dataclass(frozen=True)
class Features:
    """One view of one split, from a sealed file.

    Attributes:
        x: `[N, D]` in the storage dtype, memory-mapped, checksums verified.
        y: int64 `[N]`, indexes into `label_names`; multi-label: multi-hot uint8 `[N, C]`.
        row_hash: uint8 `[N, 32]`.
        encoder: the encoder document the features were made with.
    """

    split: str
    view: str
    x: np.ndarray
    y: np.ndarray
    label_names: tuple[str, ...]
    row_hash: np.ndarray
    encoder: dict[str, Any]
    fingerprint: str
    path: Path


class CacheFile:
    """One sealed file with its record.

    Raises:
        CorruptCache, CacheError: see `SealedFile`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sealed = SealedFile(path)

    @property
    def fingerprint(self) -> str:
        return str(self.sealed.meta["fingerprint"])

    @property
    def split(self) -> str:
        return str(self.sealed.meta["split"])

    @property
    def document(self) -> dict[str, Any]:
        """The cache document, see `fingerprint.cache_document`."""
        return dict(self.sealed.meta["document"])

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.document["views"])

    @property
    def rows(self) -> int:
        return int(self.document["rows"]["count"])

    @property
    def truncated(self) -> int:
        """How many texts were cut at the longest length."""
        return int(np.asarray(self.sealed.column("truncated")).sum())

    @property
    def tokens(self) -> int:
        """Tokens of all rows, as they were encoded."""
        return int(np.asarray(self.sealed.column("n_tokens"), dtype=np.int64).sum())

    @property
    def max_length(self) -> int:
        return int(self.document["encoder"]["max_length"])

    @cached_property
    def record(self) -> dict[str, Any]:
        """The `.json` beside the file; empty where it is lost or unreadable."""
        return read_record(self.path, self.fingerprint)

    def features(self, view: str) -> Features:
        """One view with its labels.

        Raises:
            CacheMiss: the file has no such view.
            CorruptCache: damaged bytes.
        """
        if view not in self.views:
            raise CacheMiss(f"{self.path} has views {', '.join(self.views)}, not {view}")
        document = self.document
        return Features(
            split=self.split,
            view=view,
            x=self.sealed.column(view_column(view)),
            y=np.asarray(self.sealed.column("labels")),
            label_names=tuple(document["labels"]["names"]),
            row_hash=np.asarray(self.sealed.column("row_hash")),
            encoder=document["encoder"],
            fingerprint=self.fingerprint,
            path=self.path,
        )


def view_column(view: str) -> str:
    """`last/cls` -> `views/last-cls`, the dataset's name in the file."""
    return "views/" + view.replace("/", "-")


def slug(name: str) -> str:
    """A folder name for a hub id or a path: `lansinuote/ChnSentiCorp` -> `lansinuote--ChnSentiCorp`."""
    parts = [part for part in re.split(r"[/\\]+", name.strip("./\\")) if part not in ("", ".", "..")]
    kept = parts[-2:] if len(parts) == 2 and not name.startswith((".", "/", "~")) else parts[-1:]
    return re.sub(r"[^\w.\-]+", "_", "--".join(kept)) or "unnamed"


def cache_path(cache_dir: Path, dataset: str, model: str, split: str, fingerprint: str) -> Path:
    """Where the sealed file of a split lies."""
    return cache_dir / slug(dataset) / slug(model) / f"{split}-{fingerprint[:12]}.h5"


def cache_files(cache_dir: Path, split: str = "*") -> Iterator[CacheFile]:
    """All sealed files that can be opened, newest first and one at a time; damaged ones are passed over."""
    for path in sorted(cache_dir.glob(f"*/*/{split}-*.h5"), key=_age):
        try:
            file = CacheFile(path)
        except CacheError:
            continue
        yield file


def damaged(cache_dir: Path, split: str) -> list[CacheError]:
    """What is wrong with each cache file of `split` that cannot be opened, the newest first."""
    errors = []
    for path in sorted(cache_dir.glob(f"*/*/{split}-*.h5"), key=_age):
        try:
            CacheFile(path)
        except CacheError as error:
            errors.append(error)
    return errors


def cache_paths(cache_dir: Path) -> list[Path]:
    """Every cache file's path, whole or damaged, newest first."""
    return sorted(cache_dir.glob("*/*/*-*.h5"), key=_age)


def record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def read_record(path: Path, fingerprint: str) -> dict[str, Any]:
    """The record of the cache file `path`; empty where it is lost, damaged or of another file."""
    try:
        record = json.loads(record_path(path).read_bytes())
        intact = record.pop("checksum") == document_hash(record)
        return dict(record) if intact and record["fingerprint"] == fingerprint else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def add_request(file: CacheFile, request: Mapping[str, Any], made: Mapping[str, Any] | None = None) -> None:
    """Note in the record of `file` that it answers `request`."""
    record = read_record(file.path, file.fingerprint)
    record = record or {"fingerprint": file.fingerprint, "requests": []}
    if made is not None:
        record["made"] = dict(made)
    if canonical(request) not in [canonical(known) for known in record["requests"]]:
        record["requests"].append(dict(request))
    signed = {**record, "checksum": document_hash(record)}
    write_file(record_path(file.path), json.dumps(signed, indent=1, sort_keys=True).encode("ascii"))


def find_request(files: Iterable[CacheFile], request: Mapping[str, Any], views: set[str]) -> CacheFile | None:
    """The file that answered this very request before and has all `views`, as they were asked."""
    wanted = canonical(request)
    for file in files:
        for known in file.record.get("requests", []):
            names = set(known.get("views", {}))
            if canonical(_without_views(known)) == wanted and views <= names:
                return file
    return None


def nearest(
    files: Iterable[CacheFile], request: Mapping[str, Any]
) -> tuple[CacheFile, list[Difference]] | None:
    """The file whose requests differ from `request` in the fewest fields, and these fields."""
    best: tuple[CacheFile, list[Difference]] | None = None
    for file in files:
        for known in file.record.get("requests", []):
            found = differences(_without_views(known), request)
            if best is None or len(found) < len(best[1]):
                best = (file, found)
    return best


def remove(path: Path) -> None:
    """Remove a cache file with its record and its unfinished blocks; an open reader keeps reading.

    Raises:
        CacheError: a writer is at work on it, or the file system refuses.
    """
    with locked(path), explained(path):
        for left in (path, record_path(path)):
            left.unlink(missing_ok=True)
        shutil.rmtree(path.with_suffix(".partial"), ignore_errors=True)
    path.with_suffix(".lock").unlink(missing_ok=True)


def _without_views(request: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key != "views"}


def _age(path: Path) -> float:
    """Sort key: newest first; a file that is just being removed comes last."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0
