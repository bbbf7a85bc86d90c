"""The vectors of one split -> a sealed file of the cache, under a name that has no others of that split."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np

from featcache.backbone.model_files.kinds import PREFIX
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, view_column
from featcache.cache.description import FileDescription
from featcache.cache.record import CacheRecord, Provenance, write_record
from featcache.cache.sealed_writer import Column
from featcache.cache.shards import Columns
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
    row_hashes,
)
from featcache.importing.check import SplitVectors
from featcache.system.durable import remove_temporaries
from featcache.system.hashes import FileState
from featcache.system.lock import discard_lock, locked
from featcache.system.progress import OnProgress, Progress, ignore

VIEW = "vectors"  # the name of the only view


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
        with self._name_locked():
            return self._seal(split, vectors, time.perf_counter())

    @contextmanager
    def _name_locked(self) -> Iterator[None]:
        """One process at a time imports under a name, so that it stands for one set of vectors."""
        target = self.cache.folder / "imports" / self.name
        with locked(target):
            yield
            discard_lock(target)

    def _seal(self, split: Split, vectors: SplitVectors, began: float) -> tuple[CacheFile, bool]:
        known = self.cache.imported(PREFIX + self.name)
        encoder, state = self._encoder(vectors), vectors.file.state
        split = with_labels_of(split, known.get("train"))
        for other in known.values():
            self._check_agrees(encoder, split, other)
        hashes = np.concatenate([row_hashes(*batch) for batch in split.batches()])
        rows, labels = RowsPart.of(hashes), LabelsPart.of(split.labels, split.label_names)
        document = CacheDocument(
            encoder, (VIEW,), rows, labels, imported=vectors.check(split.name, self.on_progress)
        )
        if (before := known.get(split.name)) is not None:
            if before.document == document:
                return before, True
            raise self._taken(before, document)
        columns = _columns(split, vectors, hashes, state, self.on_progress)
        return self._write(split, document, columns, began), False

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

    def _write(self, split: Split, document: CacheDocument, columns: Columns, began: float) -> CacheFile:
        model, cache = PREFIX + self.name, self.cache
        path = cache.path(self.dataset, model, split.name, document.fingerprint)
        description = FileDescription(
            format="featcache",
            fingerprint=document.fingerprint,
            split=split.name,
            model=model,
            document=document.to_json(),
        )
        with locked(path):
            remove_temporaries(path)
            cache.write(path, description, len(split), columns, self.shard_size)
            made = replace(
                self.made,
                seconds=time.perf_counter() - began,
                pairs=split.has_pairs,
                encoded=0,
                tokens=0,
                created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                dataset=self.dataset,
                model=model,
                host=platform.node(),
                versions={"numpy": version("numpy")},
            )
            write_record(path, CacheRecord(document.fingerprint, made=made))
        cache.push(path)
        return cache.file(path)


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


def _columns(
    split: Split,
    vectors: SplitVectors,
    hashes: np.ndarray,
    state: FileState | None,
    on_progress: OnProgress,
) -> Columns:
    """All columns of the file for any of its rows; no vector is read before it is written.

    Args:
        state: of the file of vectors before it was checked.
    """

    def counted(rows: slice) -> Iterator[np.ndarray]:
        done = rows.start
        for block in vectors.blocks(rows):
            yield block
            done += len(block)
            on_progress(Progress("seal", split.name, done, len(split)))
        if vectors.file.state != state:  # nothing is published
            raise SourceError(
                f"{vectors.file.where} changed while it was imported",
                hint="run the same command again once no program writes to it",
            )

    def of_rows(rows: slice) -> list[Column]:
        count, labels = len(range(len(split))[rows]), split.labels[rows]
        return [
            Column(view_column(VIEW), (count, vectors.file.width), vectors.storage, counted(rows)),
            Column("labels", labels.shape, labels.dtype.name, [labels]),
            Column("row_hash", (count, 32), "uint8", [hashes[rows]]),
            Column("n_tokens", (count,), "int32", [np.zeros(count, np.int32)]),  # nobody counted them
            Column("truncated", (count,), "uint8", [np.zeros(count, np.uint8)]),
        ]

    return of_rows
