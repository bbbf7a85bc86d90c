"""The vectors of one split -> a sealed file of the cache, under a name that has no others of that split."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from featcache.backbone.model_files.kinds import PREFIX
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, view_column
from featcache.cache.description import FileDescription
from featcache.cache.record import CacheRecord, Provenance, write_record
from featcache.cache.sealed_writer import Column
from featcache.cache.writing.cache_writer import unsealed_cache
from featcache.data.split import Split
from featcache.errors import SourceError, UsageError
from featcache.fingerprint import (
    CacheDocument,
    Dtypes,
    EncoderDocument,
    LabelsPart,
    RowsPart,
    VectorsPart,
    differences,
)
from featcache.importing.check import CheckedVectors, HashedRows, SplitVectors
from featcache.system.durable import remove_temporaries
from featcache.system.lock import discard_lock, locked
from featcache.system.progress import OnProgress, ignore

VIEW = "vectors"  # the name of the only view
WAIT = 10.0  # seconds for a process that looks whether somebody writes the file


@dataclass(frozen=True, kw_only=True)
class VectorSealer:
    """Seals the splits of one name.

    Attributes:
        name, model: see `VectorsPart`.
        dataset: name of the texts' source, and of a folder in the cache.
        shard_size: most bytes of one file.
        made: what the records say, but for the time.
    """

    cache: Cache
    name: str
    model: str | None
    dataset: str
    shard_size: int
    made: Provenance
    on_progress: OnProgress = ignore

    def seal(self, split: Split, vectors: SplitVectors) -> tuple[CacheFile, bool]:
        """The sealed file of a split, and whether it was there before.

        Raises:
            SourceError: a vector cannot be used, or does not fit those of the other splits.
            UsageError: the name has other vectors, rows or labels of this split.
            CacheError: the file cannot be written.
        """
        # One process at a time imports under a name, so that it stands for one set of vectors.
        with _own_lock(self.cache.folder / "imports" / f"{self.name}.import"):  # the lock replaces the ending
            return self._seal(split, vectors, time.perf_counter())

    def _seal(self, split: Split, vectors: SplitVectors, began: float) -> tuple[CacheFile, bool]:
        known = self.cache.imported(PREFIX + self.name)
        encoder = self._encoder(vectors)
        split = with_labels_of(split, known.get("train"))
        for other in known.values():
            self._check_agrees(encoder, split, other)
        before, labels = known.get(split.name), LabelsPart.of(split.labels, split.label_names)
        checked = CheckedVectors(vectors, split.name, "seal" if before is None else "check", self.on_progress)
        about = CacheDocument(encoder, (VIEW,), RowsPart(len(split), ""), labels)
        new = _ImportedSplit(split, about, checked, HashedRows(split))
        if before is None:
            return self._write(new, began), False
        for blocks in (checked.blocks(), new.rows.blocks()):
            deque(blocks, maxlen=0)
        if before.document != new.document():
            raise self._taken(before, new.document())
        return before, True

    def _encoder(self, vectors: SplitVectors) -> EncoderDocument:
        """Of all splits of the name; nothing is encoded, so that there is no prompt and no longest text."""
        return EncoderDocument(
            files={},
            prompt="",
            max_length=0,
            truncation_side="right",
            dtype=Dtypes(vectors.storage, vectors.storage),
            vectors=VectorsPart(self.name, vectors.file.width, self.model),
        )

    def _check_agrees(self, encoder: EncoderDocument, split: Split, other: CacheFile) -> None:
        names = other.document.labels.names
        if other.split != split.name and names != split.label_names:
            raise SourceError(
                f"vectors:{self.name} has other labels of {other.split}: {', '.join(names[:12])}; those of "
                f"{split.name} are {', '.join(split.label_names[:12])}",
                hint="train says which labels there are, and in which order: import it first",
            )
        found = differences(other.document.encoder.to_json(), encoder.to_json())
        if not found:
            return
        storage = other.document.encoder.dtype.storage
        raise SourceError(
            f"vectors:{self.name} has {other.split} vectors that differ from these: "
            + "; ".join(map(str, found)),
            hint="all splits of a name are of one encoder, described alike: give another name with --as"
            + (f", or --storage {storage}" if storage != encoder.dtype.storage else ""),
        )

    def _taken(self, before: CacheFile, document: CacheDocument) -> UsageError:
        parts = {"rows": "texts", "labels": "labels", "imported": "vectors"}
        other = [
            said for part, said in parts.items() if getattr(before.document, part) != getattr(document, part)
        ]
        return UsageError(
            f"vectors:{self.name} has other {' and '.join(other)} of {before.split}",
            hint="give these another name with --as, or remove the others first: "
            f"featcache cache rm {before.fingerprint[:12]}",
        )

    def _write(self, new: _ImportedSplit, began: float) -> CacheFile:
        """Read vectors and texts once; the file gets its name from them when they are all written."""
        unnamed = self._path(new.split, new.unread)
        with _own_lock(unnamed):
            remove_temporaries(unnamed)
            description, count = self._description(new.split, new.unread), len(new.split)
            with unsealed_cache(unnamed, description, count, new.columns, self.shard_size) as written:
                document = new.document()
                path = self._path(new.split, document)
                with locked(path, WAIT):
                    written.publish(path, self._description(new.split, document))
                    made = self._made(new.split, began)
                    write_record(path, CacheRecord(document.fingerprint, made=made))
        self.cache.push(path)
        return self.cache.file(path)

    def _path(self, split: Split, document: CacheDocument) -> Path:
        return self.cache.path(self.dataset, PREFIX + self.name, split.name, document.fingerprint)

    def _description(self, split: Split, document: CacheDocument) -> FileDescription:
        return FileDescription(
            format="featcache",
            fingerprint=document.fingerprint,
            split=split.name,
            model=PREFIX + self.name,
            document=document.to_json(),
        )

    def _made(self, split: Split, began: float) -> Provenance:
        return replace(
            self.made,
            seconds=time.perf_counter() - began,
            pairs=split.has_pairs,
            encoded=0,
            tokens=0,
            created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            dataset=self.dataset,
            model=PREFIX + self.name,
            host=platform.node(),
            versions={"numpy": version("numpy")},
        )


@contextmanager
def _own_lock(target: Path) -> Iterator[None]:
    """The lock of something that is no file, and leaves none."""
    with locked(target):
        try:
            yield
        finally:
            discard_lock(target)


def with_labels_of(split: Split, train: CacheFile | None) -> Split:
    """The split with its labels in the order of the train rows' labels, so that a head reads both alike.

    Raises:
        SourceError: labels of another task, or one that never occurs in train.
    """
    if train is None or split.name == "train" or split.label_names == train.document.labels.names:
        return split
    names, own = train.document.labels.names, split.label_names
    if bool(names) != bool(own):
        raise SourceError(
            f"the labels of {split.name} are {'classes' if own else 'numbers'}, and those of train are not",
            hint="import both with the same --task",
        )
    if odd := [name for name in own if name not in names]:
        raise SourceError(
            f"label {odd[0]!r} of {split.name} never occurs in train",
            hint=f"labels of train: {', '.join(names[:12])}; import all of train first, under the same name",
        )
    places = np.array([names.index(name) for name in own], np.int64)
    if split.labels.ndim == 1:
        labels = np.where(split.labels < 0, -1, places[split.labels.astype(np.int64)])
        return replace(split, labels=labels, label_names=names)
    hot = np.zeros((len(split), len(names)), np.uint8)
    hot[:, places] = split.labels
    return replace(split, labels=hot, label_names=names)


@dataclass(frozen=True)
class _ImportedSplit:
    """What becomes one file.

    Attributes:
        about: the document, but for what is known once vectors and rows were read.
    """

    split: Split
    about: CacheDocument
    vectors: CheckedVectors
    rows: HashedRows

    @property
    def unread(self) -> CacheDocument:
        """As long as `document`."""
        return replace(self.about, rows=RowsPart(len(self.split), "0" * 64), imported="0" * 32)

    def document(self) -> CacheDocument:
        """Once vectors and rows were read.

        Raises:
            SourceError: see `CheckedVectors.identity`.
        """
        return replace(self.about, rows=self.rows.identity(), imported=self.vectors.identity())

    def columns(self, rows: slice) -> list[Column]:
        """All columns of the file for any of its rows; nothing is read before it is written."""
        found = self.vectors.vectors
        count, labels = len(range(len(self.split))[rows]), self.split.labels[rows]
        return [
            Column(view_column(VIEW), (count, found.file.width), found.storage, self.vectors.blocks(rows)),
            Column("labels", labels.shape, labels.dtype.name, [labels]),
            Column("row_hash", (count, 32), "uint8", self.rows.blocks(rows)),
            Column("n_tokens", (count,), "int32", [np.zeros(count, np.int32)]),  # nobody counted them
            Column("truncated", (count,), "uint8", [np.zeros(count, np.uint8)]),
        ]
