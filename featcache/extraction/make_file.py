"""The making of one cache file: divide, encode, assemble, seal; alone or with others.

Whoever holds the file's lock leads: it plans, and it seals once every block is there. The others of a gang
join its plan. All of them, the leader too, take one unclaimed block after the other. Where the leader is
killed, the next one that finds its lock free leads on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.cache.staging import Staging, read_plan
from featcache.data.split import Split
from featcache.errors import CacheError, LockHeld
from featcache.extraction.assemble import columns
from featcache.extraction.encode_blocks import Claim, encode_blocks
from featcache.extraction.partition import Division, divide, token_costs
from featcache.extraction.worker_group import Board, Gang, Note
from featcache.fingerprint import CacheDocument
from featcache.system.durable import remove_temporaries, require_space
from featcache.system.lock import locked
from featcache.system.progress import OnProgress, Progress

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.backbone.throughput import Speedometer

AHEAD = 2  # blocks whose texts are tokenised before the model is there for them
POLL = 0.1  # seconds between two looks at what other processes do
PATIENCE = 2.0  # seconds in which a worker says what it has done
SHARD_SIZE = 4_000_000_000


@dataclass(frozen=True)
class Made:
    """What making a file took: texts and tokens that were encoded, by all workers.

    Attributes:
        sealed: whether it was this process that sealed it; if not, the numbers are what it knows.
    """

    encoded: int
    tokens: int
    sealed: bool


@dataclass
class Making:
    """One cache file to be made.

    Args:
        hashes: row hashes uint8 `[N, 32]`.
        sizes: bytes of each row's text, `[N]`.
        path: where the file will be.
        force: take no rows of earlier files, and replace one of this name.
        wait: seconds to wait for another process that makes it.
        gang: the processes that this one works with; None: it works alone.
        shard_size: most bytes of one file; what is larger becomes several shards.
        elsewhere: has blocks encoded and committed in the place of this process.
    """

    split: Split
    hashes: np.ndarray
    sizes: np.ndarray
    encoder: Encoder
    document: CacheDocument
    model_name: str
    cache: Cache
    path: Path
    report: OnProgress
    speedometer: Callable[[Encoder, int], Speedometer | None]
    force: bool = False
    wait: float = 0.0
    gang: Gang | None = None
    elsewhere: Elsewhere | None = None
    shard_size: int = SHARD_SIZE
    speed: Speedometer | None = None
    note: Note = field(init=False)

    def __post_init__(self) -> None:
        self.note = Note(self.gang.rank if self.gang else 0, self.split.name, total=len(self.split))
        self.partial = self.path.with_suffix(".partial")
        self.board = Board(self.gang.board or self.partial if self.gang else self.partial)

    def run(self) -> Made:
        """Make the file, or wait until another of the gang has.

        Raises:
            LockHeld: another process makes it, and this one works alone.
            BackboneError, CacheError: committed blocks are kept.
        """
        if self.gang is None:
            waiting = lambda text: self.report(Progress("note", self.split.name, text=text))  # noqa: E731
            with locked(self.path, self.wait, waiting):
                return self._lead()
        while not self._sealed():
            try:
                with locked(self.path):
                    if not self._sealed():
                        return self._lead()
            except LockHeld:
                self._join()
            time.sleep(POLL)
        return Made(self.note.left, self.note.tokens, sealed=False)

    def _sealed(self) -> bool:
        """Whether another of the gang has finished the file."""
        return self.board.finished(self.split.name) if self.force else self.path.exists()

    # -- leading and joining ----------------------------------------------------------------------

    def _lead(self) -> Made:
        division = self._divide()
        self._check_space(len(division.to_encode))
        remove_temporaries(self.path)  # of a process that was killed while it wrote this very file
        staging = Staging(self.partial, self._note_of(division))
        committed = staging.committed()
        if committed:
            text = f"{self.split.name}: going on from {len(committed)} of {division.blocks} blocks"
            self.report(Progress("note", self.split.name, text=text))
        self._encode_missing(staging, division, committed)
        self.report(Progress("seal", self.split.name, len(self.split), len(self.split)))
        parts = columns(self.split, self.hashes, self.document, division, staging)
        rows = len(self.split)
        self.cache.write(
            self.path,
            self._meta(),
            rows,
            parts,
            self.shard_size,
            replace=self.force,
        )
        made = self._all_made()
        if self.gang:
            self.board.finish(self.split.name)
        try:
            staging.discard()
        except CacheError as error:  # the file is whole; what is left goes with `cache gc`
            self.report(Progress("note", self.split.name, text=error.what))
        return made

    def _all_made(self) -> Made:
        """What all workers together have done: what was missing when the first of them began."""
        if self.gang is None:
            return Made(self.note.left, self.note.tokens, sealed=True)
        self.board.post(self.note, now=True)
        until = time.monotonic() + PATIENCE
        while True:  # a worker says what it has done when its last block is there already
            notes = self.board.notes_of(self.split.name)
            left = max((note.left for note in notes), default=self.note.left)
            if sum(note.done for note in notes) >= left or time.monotonic() > until:
                return Made(left, sum(note.tokens for note in notes), sealed=True)
            time.sleep(POLL)

    def _join(self) -> None:
        """Help whoever leads until no block is missing; nothing where there is no plan to join yet."""
        note = read_plan(self.partial)
        if note is None:
            return
        donors = self._donors_named(note)
        if donors is None:
            return
        division = self._divided(donors)
        if self._note_of(division) != note:
            return
        staging = Staging(self.partial, note, joined=True)
        named = staging.named()
        if not staging.there:  # finished while this one divided
            return
        self._encode_missing(staging, division, named)

    def _divide(self) -> Division:
        """A new division, or that of unfinished work where it leaves no more to be encoded."""
        new = self._divided([] if self.force else list(self._possible_donors()))
        note = read_plan(self.partial)
        donors = self._donors_named(note) if note else None
        if note is None or donors is None or self._note_of(new) == note:
            return new
        old = self._divided(donors)
        if self._note_of(old) != note:
            return new
        there = Staging(self.partial, note, joined=True).named()
        left = old.count([number for number in range(old.blocks) if number not in there])
        return old if left <= len(new.to_encode) else new

    def _divided(self, donors: Sequence[CacheFile]) -> Division:
        encoder = self.document.encoder
        cut = None if encoder.long_text == "chunks" else encoder.max_length
        costs = token_costs(self.sizes, cut)
        return divide(donors, self.hashes, costs, self.encoder.batch_tokens)

    def _note_of(self, division: Division) -> dict[str, Any]:
        return division.note(self.document.fingerprint, self.encoder.batch_tokens)

    def _possible_donors(self) -> Iterator[CacheFile]:
        """Sealed files made by the very same encoder, with all views wanted here."""
        wanted = set(self.document.views)
        for file in self.cache.files():
            if file.document.encoder == self.document.encoder and wanted <= set(file.views):
                yield file

    def _donors_named(self, note: dict[str, Any]) -> list[CacheFile] | None:
        """The donors that a plan names, in its order; None where one of them is gone."""
        there = {file.path.name: file for file in self._possible_donors()} if note.get("donors") else {}
        found = [there.get(name) for name in note.get("donors", [])]
        return None if None in found else [file for file in found if file is not None]

    def _check_space(self, rows: int) -> None:
        hidden = int(getattr(self.encoder.backbone.model.config, "hidden_size", 1024))
        row_bytes = len(self.encoder.views) * hidden * self.encoder.storage.itemsize + 64
        needed = row_bytes * (rows + len(self.split)) + self.split.labels.nbytes + (1 << 20)
        require_space(self.cache.folder, needed, f"the cache of {self.split.name}")

    def _meta(self) -> dict[str, Any]:
        return {
            "format": "featcache",
            "fingerprint": self.document.fingerprint,
            "split": self.split.name,
            "model": self.model_name,
            "document": self.document.to_json(),
        }

    # -- blocks -----------------------------------------------------------------------------------

    def _encode_missing(self, staging: Staging, division: Division, committed: set[int]) -> None:
        """Encode and commit blocks until none is missing."""
        missing = sorted(set(range(division.blocks)) - committed)
        self.note.left = division.count(missing)
        if self.elsewhere is not None:
            self._step(0, 0)
            self.elsewhere(self, staging, division, missing, self._step)
            return
        self.encoder.backbone.prepare(len(self.split))  # by the whole, so that a resumed run decides alike
        self.speed = self.speedometer(self.encoder, self.note.left)
        self._step(0, 0)
        work = self._claimed(staging, missing) if self.gang else _each(staging, missing)
        ahead = 1 if self.gang else AHEAD
        encode_blocks(self.encoder, self.split, division, staging, work, self._step, self.speed, ahead)
        if self.gang:
            self.board.post(self.note, now=True)

    def _claimed(self, staging: Staging, missing: list[int]) -> Iterator[Claim | None]:
        """Blocks that are this process's to encode; None where there is none at the moment.

        Ends when all are committed. Blocks that others have claimed are waited for, and taken over where
        their worker is gone.
        """
        while missing:
            idle = True
            for claim in _each(staging, missing):
                # Made since we looked; or all of it is, and what was there is being removed.
                if claim.number in staging.named() or not staging.there:
                    claim.lock.release()
                    continue
                idle = False
                yield claim
            if idle:
                self._step(0, 0)
                yield None
            there = staging.named()
            if self._over(there):
                return
            missing = [number for number in missing if number not in there]

    def _over(self, there: set[int]) -> bool:
        """Whether the blocks are gone because the file is done."""
        if self.gang and self.gang.orphaned:
            raise CacheError("the process that started this worker is gone")
        return not there and self._sealed()

    def _step(self, texts: int, tokens: int) -> None:
        note, rows = self.note, len(self.split)
        note.stage = "encode"
        note.done += texts
        note.tokens += tokens
        if self.gang:
            self.board.post(note)
        share = self.speed.step(texts, tokens) if self.speed else None
        done = rows - note.left + note.done
        self.report(Progress("encode", self.split.name, done, rows, note.tokens, share=share))


# Making, its staging, its division, the blocks missing, and whom to tell of texts and tokens that are done.
Elsewhere = Callable[[Making, Staging, Division, list[int], Callable[[int, int], None]], None]


def _each(staging: Staging, numbers: Sequence[int]) -> Iterator[Claim]:
    """Those of some blocks that nobody else has claimed, in order."""
    for number in numbers:
        if (lock := staging.claim(number)) is not None:
            yield Claim(number, lock)
