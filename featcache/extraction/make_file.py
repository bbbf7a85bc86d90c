"""Make one cache file: partition its rows, encode them, assemble and seal; alone or with other workers.

The process that holds the file's lock leads: it makes the plan, and it seals the file once every commit unit
is there. The other workers join its plan. All of them, the leader too, take one unclaimed unit after the
other. Where the leader is killed, the next worker that finds its lock free leads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.cache.description import FileDescription
from featcache.cache.staging import Staging, partial_folder, read_plan, unfinished_work
from featcache.data.split import Split
from featcache.errors import LockHeld
from featcache.extraction.assemble import RowGatherer, columns
from featcache.extraction.encode_units import AHEAD, Claim, UnitEncoder, UnitWork
from featcache.extraction.partition import Partition, PartitionPlan, partition_rows, token_costs
from featcache.extraction.worker_folder import WorkerFolder, WorkerNote
from featcache.fingerprint import CacheDocument
from featcache.system.durable import require_space
from featcache.system.lock import locked
from featcache.system.progress import OnProgress, Progress
from featcache.system.workers import Worker

POLL = 0.1  # seconds between two looks at what other processes do
PATIENCE = 2.0  # seconds in which a worker reports what it has done


@dataclass(frozen=True)
class NewFile:
    """A cache file to make.

    Attributes:
        split: the texts and labels of its rows.
        hashes: row hashes, uint8 `[N, 32]`.
        sizes: bytes of each row's text, `[N]`.
        model: name of the model.
        path: where the file will be.
        shard_size: most bytes of one file; what is larger becomes several shards.
    """

    split: Split
    hashes: np.ndarray
    sizes: np.ndarray
    document: CacheDocument
    model: str
    cache: Cache
    path: Path
    shard_size: int

    @property
    def description(self) -> FileDescription:
        """The description in the sealed file."""
        return FileDescription(
            format="featcache",
            fingerprint=self.document.fingerprint,
            split=self.split.name,
            model=self.model,
            document=self.document.to_json(),
        )


@dataclass(frozen=True)
class EncodedCounts:
    """What was encoded for a file, by all workers.

    Attributes:
        sealed: whether it was this process that sealed the file; if not, the numbers are those it knows.
        unknown_tokens: share of the tokens of all rows; None where it is not known.
    """

    texts: int
    tokens: int
    sealed: bool
    unknown_tokens: float | None = None


class FileMaker:
    """Makes one cache file.

    Args:
        force: take no rows of earlier files, and replace one of this name.
        wait: seconds to wait for another process that makes the file.
        worker: which of several workers this process is; None: it works alone.
        folder: through which the workers report; by default that of the unfinished file.
    """

    def __init__(
        self,
        new: NewFile,
        encoder: UnitEncoder,
        on_progress: OnProgress,
        *,
        force: bool = False,
        wait: float = 0.0,
        worker: Worker | None = None,
        folder: Path | None = None,
    ) -> None:
        self.new, self.split, self.encoder = new, new.split, encoder
        self.on_progress, self.force, self.wait, self.worker = on_progress, force, wait, worker
        self.spec = encoder.spec
        self.partial = partial_folder(new.path)
        self.folder = WorkerFolder(folder or self.partial)
        self.note = WorkerNote(worker.rank if worker else 0, self.split.name, total=len(self.split))
        self.share: float | None = None

    def run(self) -> EncodedCounts:
        """Make the file, or wait until another worker has.

        Raises:
            LockHeld: another process makes it, and this one is no worker.
            BackboneError, CacheError: committed units are kept.
        """
        if self.worker is None:
            with locked(self.new.path, self.wait, self._say):
                return self._lead()
        while not self._sealed():
            try:
                with locked(self.new.path):
                    if not self._sealed():
                        return self._lead()
            except LockHeld:
                self._join()
            time.sleep(POLL)
        return EncodedCounts(self.note.left, self.note.tokens, sealed=False)

    def _sealed(self) -> bool:
        """Whether another worker has finished the file."""
        return self.folder.finished(self.split.name) if self.force else self.new.path.exists()

    def _say(self, text: str) -> None:
        self.on_progress(Progress("note", self.split.name, text=text))

    # -- leading and joining ----------------------------------------------------------------------

    def _lead(self) -> EncodedCounts:
        new, rows = self.new, len(self.split)
        partition = self._choose_partition()
        self._check_space(len(partition.to_encode))
        with unfinished_work(new.path, self._plan(partition), self._say) as staging:
            committed = staging.committed()
            if committed:
                self._say(f"{self.split.name}: going on from {len(committed)} of {partition.units} units")
            self._encode_missing(staging, partition, committed)
            self.on_progress(Progress("seal", self.split.name, rows, rows))
            gather = RowGatherer(partition, staging)
            parts = columns(self.split, new.hashes, new.document, gather)
            new.cache.write(new.path, new.description, rows, parts, new.shard_size, replace=self.force)
            counts = replace(self._counts_of_all(), unknown_tokens=gather.unknown_share())
            if self.worker:
                self.folder.finish(self.split.name)
        return counts

    def _counts_of_all(self) -> EncodedCounts:
        """What all workers have done; the first one of them found most texts missing."""
        if self.worker is None:
            return EncodedCounts(self.note.left, self.note.tokens, sealed=True)
        self.folder.post(self.note, now=True)
        until = time.monotonic() + PATIENCE
        while True:  # a worker reports what it has done when its last unit is there already
            notes = self.folder.notes(self.split.name)
            left = max((note.left for note in notes), default=self.note.left)
            if sum(note.done for note in notes) >= left or time.monotonic() > until:
                return EncodedCounts(left, sum(note.tokens for note in notes), sealed=True)
            time.sleep(POLL)

    def _join(self) -> None:
        """Help the leader until no unit is missing; does nothing where there is no plan to join yet."""
        plan = read_plan(self.partial, PartitionPlan)
        partition = self._partition_of(plan) if plan else None
        if plan is None or partition is None:
            return
        staging = Staging(self.partial, plan, joined=True)
        committed = staging.named()
        if staging.there:  # else the file was finished while this process made the partition
            self._encode_missing(staging, partition, committed)

    # -- the partition ----------------------------------------------------------------------------

    def rows_left(self) -> np.ndarray:
        """Rows that no cache file has and no earlier call has committed, int64; nothing is encoded."""
        partition = self._choose_partition()
        plan = self._plan(partition)
        begun = read_plan(self.partial, PartitionPlan) == plan
        committed = Staging(self.partial, plan, joined=True).named() if begun else set()
        left = [partition.rows(number) for number in range(partition.units) if number not in committed]
        return np.concatenate([np.empty(0, np.int64), *left])

    def _choose_partition(self) -> Partition:
        """A new partition, or that of unfinished work where it leaves no more to be encoded."""
        new = self._partition([] if self.force else list(self._possible_donors()))
        plan = read_plan(self.partial, PartitionPlan)
        if plan is None or plan == self._plan(new) or (old := self._partition_of(plan)) is None:
            return new
        committed = Staging(self.partial, plan, joined=True).named()
        left = old.count([number for number in range(old.units) if number not in committed])
        return old if left <= len(new.to_encode) else new

    def _partition(self, donors: Sequence[CacheFile]) -> Partition:
        costs = token_costs(self.new.sizes, self.spec.max_length)
        return partition_rows(donors, self.new.hashes, costs, self.spec.batch_tokens)

    def _partition_of(self, plan: PartitionPlan) -> Partition | None:
        """The partition that has this plan; None where a donor is gone or anything else differs."""
        there = {file.path.name: file for file in self._possible_donors()} if plan.donors else {}
        if not there.keys() >= set(plan.donors):
            return None
        partition = self._partition([there[name] for name in plan.donors])
        return partition if self._plan(partition) == plan else None

    def _plan(self, partition: Partition) -> PartitionPlan:
        return partition.plan(self.new.document.fingerprint, self.spec.batch_tokens)

    def _possible_donors(self) -> Iterator[CacheFile]:
        """Sealed files made by the very same encoder, with all views wanted here."""
        wanted = set(self.new.document.views)
        for file in self.new.cache.files():
            if file.document.encoder == self.new.document.encoder and wanted <= set(file.views):
                yield file

    def _check_space(self, rows: int) -> None:
        needed = (self.spec.row_bytes + 64) * (rows + len(self.split)) + self.split.labels.nbytes + (1 << 20)
        require_space(self.new.cache.folder, needed, f"the cache of {self.split.name}")

    # -- commit units -----------------------------------------------------------------------------

    def _encode_missing(self, staging: Staging, partition: Partition, committed: set[int]) -> None:
        """Encode and commit units until none is missing."""
        missing = sorted(set(range(partition.units)) - committed)
        self.note.left = partition.count(missing)
        self._on_batch(0, 0)
        self.encoder.encode(
            UnitWork(
                split=self.split,
                hashes=self.new.hashes,
                partition=partition,
                staging=staging,
                units=missing,
                claims=self._shared_claims(staging, missing) if self.worker else _claims(staging, missing),
                ahead=1 if self.worker else AHEAD,
                on_batch=self._on_batch,
            )
        )
        if self.worker:
            self.folder.post(self.note, now=True)

    def _shared_claims(self, staging: Staging, missing: list[int]) -> Iterator[Claim | None]:
        """Units that are this worker's to encode; None where there is none at the moment.

        Ends when all are committed. Units that other workers have claimed are waited for, and taken over
        where their worker is gone.
        """
        while missing:
            idle = True
            for claim in _claims(staging, missing):
                # Committed since we looked; or all units are, and the folder is being removed.
                if claim.number in staging.named() or not staging.there:
                    claim.release()
                    continue
                idle = False
                yield claim
            if idle:
                self._on_batch(0, 0)
                yield None
            committed = staging.named()
            if not committed and self._sealed():  # the units are gone because the file is done
                return
            missing = [number for number in missing if number not in committed]

    def _on_batch(self, texts: int, tokens: int, share: float | None = None) -> None:
        note, rows = self.note, len(self.split)
        note.stage = "encode"
        note.done += texts
        note.tokens += tokens
        self.share = self.share if share is None else share
        if self.worker:
            self.folder.post(note)
        done = rows - note.left + note.done
        self.on_progress(Progress("encode", self.split.name, done, rows, note.tokens, share=self.share))


def _claims(staging: Staging, numbers: Sequence[int]) -> Iterator[Claim]:
    """Those of some units that no other process has claimed, in order."""
    for number in numbers:
        if (lock := staging.claim(number)) is not None:
            yield Claim(number, lock)
