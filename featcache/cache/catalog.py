"""The cache folder: which sealed files there are, and which one serves a request.

`cache/<dataset>/<model>/<split>-<fingerprint, 12 hex>.h5` holds the features. Beside it stands a
`.json` record of how it came to be (when, how long, on what) and of the *requests* it answered: the
source's content hashes and the settings as asked, by which a repeated request is answered without
loading a model or a dataset. The record can be lost; the features then are found by their rows.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
import numpy as np

from featcache.cache.remote import mirror
from featcache.cache import shards
from featcache.errors import CacheError, CacheMiss, CorruptCache
from featcache.system.durable import TEMPORARY, explained, remove_temporaries
from featcache.fingerprint import CacheDocument, Difference, EncoderDocument, Request, canonical, differences
from featcache.system.lock import discard_lock, locked
from featcache.cache.record import CacheRecord, Provenance, read_record, record_path, write_record
from featcache.cache.sealed_file import SealedFile

STATES = "states"  # the folder of token states, beside the features of the same data and model
_STATES = re.compile(r".+-cut[0-9]+-[0-9a-f]{12}\.h5")


@dataclass(frozen=True)
class Features:
    """One view of one split, from a sealed file.

    Attributes:
        x: `[N, D]` in the storage dtype, memory-mapped, checksums verified; of a cache of several shards
            a `ShardedColumn`, which is read like an array, some rows at a time.
        y: int64 `[N]`, indexes into `label_names`; multi-label: multi-hot uint8 `[N, C]`.
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


class CacheFile:
    """One sealed file with its record.

    Raises:
        CorruptCache: see `SealedFile`; or a whole file that does not hold what it says it does.
        CacheError: see `SealedFile`; or what bears that name is no file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        mirrored = mirror.open_sealed(path)
        if mirrored is None:
            _check_is_file(path)
        self.sealed = mirrored or SealedFile(path)
        if self.sealed.meta.get("format") == shards.SHARD:
            whole = shards.owner_of(path) or path.parent
            raise CacheError(f"{path} is a shard and no cache by itself", hint=f"its cache is {whole.name}")
        if "shards" in self.sealed.meta:
            self.sealed = shards.ShardedFile(self.sealed)
        self.document = _document(self.sealed)

    @property
    def fingerprint(self) -> str:
        return str(self.sealed.meta["fingerprint"])

    @property
    def split(self) -> str:
        return str(self.sealed.meta["split"])

    @property
    def views(self) -> tuple[str, ...]:
        return self.document.views

    @property
    def rows(self) -> int:
        return self.document.rows.count

    @property
    def truncated(self) -> int:
        """How many texts were cut at the longest length."""
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

        A name that was never asked for is returned as it is.
        """
        known = (request.views.get(asked) for request in self.record.requests)
        return next(filter(None, known), asked)

    def features(self, view: str) -> Features:
        """One view with its labels.

        Raises:
            CacheMiss: the file has no such view.
            CorruptCache: damaged bytes.
        """
        if view not in self.views:
            raise CacheMiss(f"{self.path} has views {', '.join(self.views)}, not {view}")
        return Features(
            split=self.split,
            view=view,
            x=self.sealed.column(view_column(view)),
            y=np.asarray(self.sealed.column("labels")),
            label_names=self.document.labels.names,
            row_hash=self.sealed.column("row_hash"),
            encoder=self.document.encoder,
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
    for path in cache_paths(cache_dir, split):
        try:
            file = CacheFile(path)
        except CacheError:
            continue
        yield file


def damaged(cache_dir: Path, split: str) -> list[CacheError]:
    """What is wrong with each cache file of `split` that cannot be opened, the newest first."""
    errors = []
    for path in cache_paths(cache_dir, split):
        try:
            CacheFile(path)
        except CacheError as error:
            errors.append(error)
    return errors


def cache_paths(cache_dir: Path, split: str = "*") -> list[Path]:
    """Every cache file's path, whole or damaged, newest first; files that are being written are none yet.

    Of a cache in a store also where its files will lie when they are fetched.
    """
    elsewhere = mirror.known(cache_dir, split)  # first: what is gone from the store is removed here
    found = {*elsewhere, *cache_dir.glob(f"*/*/{split}-*.h5")}
    named = (path for path in found if not path.name.startswith(TEMPORARY) and not shards.owner_of(path))
    return sorted(named, key=_age)


def states_paths(cache_dir: Path) -> list[Path]:
    """Every file of token states, whole or damaged, newest first."""
    return sorted(filter(is_states, cache_dir.glob(f"*/*/{STATES}/*.h5")), key=_age)


def is_states(path: Path) -> bool:
    """Whether a file of this name holds token states and not features."""
    return path.parent.name == STATES and _STATES.fullmatch(path.name) is not None


def add_request(file: CacheFile, request: Request, made: Provenance | None = None) -> None:
    """Note in the record of `file` that it answers `request`, and how it was made."""
    record = read_record(file.path, file.fingerprint).with_request(request)
    write_record(file.path, record if made is None else replace(record, made=made))


def find_request(files: Iterable[CacheFile], request: Request, views: set[str]) -> CacheFile | None:
    """The file that answered the same request before and has all `views`, as they were asked."""
    wanted = canonical(request.key())
    for file in files:
        for known in file.record.requests:
            if canonical(known.key()) == wanted and views <= set(known.views):
                return file
    return None


def nearest(files: Iterable[CacheFile], request: Request) -> tuple[CacheFile, list[Difference]] | None:
    """The file whose requests differ from `request` in the fewest fields, and these fields."""
    best: tuple[CacheFile, list[Difference]] | None = None
    for file in files:
        for known in file.record.requests:
            found = differences(known.key(), request.key())
            if best is None or len(found) < len(best[1]):
                best = (file, found)
    return best


def remove(path: Path) -> None:
    """Remove a cache file with its record and its unfinished blocks.

    A reader that has it open keeps reading (its memory map outlives the name); one that has only found
    the name is told that there is no such file.

    Raises:
        CacheError: a writer is at work on it, or the file system refuses.
    """
    with locked(path), explained(path):
        mirror.remove(path)
        for left in (path, record_path(path), *shards.shard_paths(path)):  # shards without it are litter
            left.unlink(missing_ok=True)
        remove_folder(path.with_suffix(".partial"))
        remove_temporaries(path)
        discard_lock(path)


def remove_folder(folder: Path) -> None:
    """Remove a folder that may be gone already; of a link to one, only the link."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _age(path: Path) -> float:
    """Sort key: newest first; a file that is just being removed comes last."""
    try:
        return -mirror.facts(path)[1]
    except OSError:
        return 0.0


def _check_is_file(path: Path) -> None:
    """Refuse folders, and pipes, which would be waited for."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise CacheError(f"{path} is no cache file but {what}")


def _document(sealed: SealedFile) -> CacheDocument:
    """The cache document of a sealed file.

    Raises:
        CorruptCache: the seal holds, but the description lacks what is asked of it later.
    """
    try:
        document = CacheDocument.from_json(sealed.meta.get("document"))
        if not all(isinstance(sealed.meta.get(name), str) for name in ("fingerprint", "split")):
            raise ValueError("a name that is none")
        wanted = {view_column(view) for view in document.views} | {"labels", "row_hash", "truncated"}
        if missing := wanted - set(sealed.names):
            raise ValueError(f"without column {min(missing)}")
    except ValueError as error:
        raise CorruptCache(
            f"{sealed.path} does not hold what its description says: {error}",
            hint="remove it with featcache cache rm, then run featcache extract again",
        ) from error
    return document
