"""Commit units of texts -> committed features; tokenised ahead of the model, written behind it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from featcache.cache.staging import Staging
from featcache.data.split import Split
from featcache.errors import BackboneError, BadRow, SourceError
from featcache.extraction.encoder_spec import EncoderSpec
from featcache.extraction.partition import Partition
from featcache.fingerprint import row_hashes
from featcache.system.lock import ProcessLock

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.backbone.tokens.tokenization import Tokens

AHEAD = 2  # units whose texts are tokenised before the model is there for them; 1 where workers share them
POLL = 0.1  # seconds between two looks for work where there is none

Prepared = TypeVar("Prepared")
Told = TypeVar("Told", covariant=True)  # what an encoder makes of texts before it encodes them


@dataclass(frozen=True)
class Claim:
    """The right to encode a commit unit.

    Attributes:
        lock: released once the unit is committed; None where no other process can have it.
    """

    number: int
    lock: ProcessLock | None = None

    def release(self) -> None:
        if self.lock is not None:
            self.lock.release()


@dataclass(frozen=True)
class UnitWork:
    """Commit units of one file to encode.

    Attributes:
        hashes: row hashes of the split, uint8 `[N, 32]`, which its texts must have when they are encoded.
        staging: where they are committed.
        units: numbers of those that were missing.
        claims: this process's share of them; None where there is none at the moment, but may be later.
        ahead: units that are claimed and tokenised before the model is there for them.
        on_batch: called after each batch with the texts and tokens done in it, and the share of the
            machine's peak that was reached, None where it is not known.
    """

    split: Split
    hashes: np.ndarray
    partition: Partition
    staging: Staging
    units: Sequence[int]
    claims: Iterable[Claim | None]
    ahead: int
    on_batch: Callable[[int, int, float | None], None]


class UnitEncoder(Protocol):
    """What encodes commit units: the model of this process, or the actors of a cluster."""

    @property
    def spec(self) -> EncoderSpec:
        """The description of the encoder."""

    def encode(self, work: UnitWork) -> None:
        """Encode and commit units until none of `work.units` is missing.

        Raises:
            BackboneError: a text that cannot be encoded, by its row in the source.
            CacheError: a unit that cannot be written.
        """


class LocalUnitEncoder:
    """Encodes commit units by the model of this process.

    Args:
        watched: whether the share of the machine's peak is measured.
    """

    def __init__(self, spec: EncoderSpec, encoder: Encoder, *, watched: bool = False) -> None:
        self.spec, self.encoder, self.watched = spec, encoder, watched

    def encode(self, work: UnitWork) -> None:
        """See `UnitEncoder.encode`."""
        encoder, split, partition, speed = self.encoder, work.split, work.partition, None
        encoder.prepare(len(split))  # by the whole, so that a resumed run decides alike
        self.spec = replace(self.spec, fused=tuple(encoder.backbone.fused))
        if self.watched and encoder.backbone.num_blocks:  # a static model multiplies nothing
            from featcache.backbone.throughput import Speedometer

            speed = Speedometer(encoder, partition.count(work.units))

        def on_batch(texts: int, tokens: int) -> None:
            work.on_batch(texts, tokens, speed.step(texts, tokens) if speed else None)

        def tokenize(number: int) -> Tokens:
            return tokenize_rows(encoder, split, partition.rows(number), work.hashes)

        def encode(number: int, tokens: Tokens) -> dict[str, np.ndarray]:
            if speed:
                speed.expect(tokens.lengths)
            with naming_rows(split, partition.rows(number)):
                encoded = encoder.encode(tokens, on_batch)
            columns = {"n_tokens": encoded.n_tokens, "truncated": encoded.truncated.astype(np.uint8)}
            if tokens.unknown is not None:
                columns |= {"unknown": tokens.unknown.unknown, "own": tokens.unknown.own}
            return {**encoded.views, **columns}

        commit_units(work.claims, tokenize, encode, work.staging, work.ahead)


def commit_units(
    claims: Iterable[Claim | None],
    prepare: Callable[[int], Prepared],
    compute: Callable[[int, Prepared], dict[str, np.ndarray]],
    staging: Staging,
    ahead: int = AHEAD,
    on_commit: Callable[[int], None] = lambda _: None,
) -> None:
    """Compute and commit each unit that is claimed.

    Args:
        claims: units to compute; None where there is none at the moment, but may be later.
        prepare: called in a thread that stays `ahead` units ahead, with the number of a unit.
        compute: the arrays of a unit, by its number and what `prepare` returned.
        on_commit: called with the number of a unit that is durable.
    """
    held: dict[int, Claim] = {}

    def commit(claim: Claim, arrays: dict[str, np.ndarray]) -> int:
        staging.commit(claim.number, arrays)
        held.pop(claim.number).release()
        return claim.number

    try:
        with ThreadPoolExecutor(1) as writer:
            writing: Future[int] | None = None
            for claim, prepared in _prepared(claims, prepare, held, ahead):
                arrays = compute(claim.number, prepared)
                if writing:
                    on_commit(writing.result())  # at most one unit waits; its error ends the work
                writing = writer.submit(commit, claim, arrays)
            if writing:
                on_commit(writing.result())
    finally:
        for claim in held.values():
            claim.release()


def _prepared(
    claims: Iterable[Claim | None],
    prepare: Callable[[int], Prepared],
    held: dict[int, Claim],
    ahead: int,
) -> Iterator[tuple[Claim, Prepared]]:
    """Each claim, put into `held`, with what `prepare` returns for it."""
    with ThreadPoolExecutor(1) as pool:
        queue: deque[tuple[Claim, Future[Prepared]]] = deque()
        try:
            for claim in claims:
                if claim is not None:
                    held[claim.number] = claim
                    queue.append((claim, pool.submit(prepare, claim.number)))
                if len(queue) > (ahead if claim is not None else 0):
                    first, future = queue.popleft()
                    yield first, future.result()
                elif claim is None:
                    time.sleep(POLL)
            for first, future in queue:
                yield first, future.result()
        finally:
            for _, future in queue:
                future.cancel()


class Tokenizer(Protocol[Told]):
    """The part of an encoder that reads texts."""

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Told:
        """Texts as what its `encode` takes."""


def tokenize_rows(encoder: Tokenizer[Told], split: Split, rows: np.ndarray, hashes: np.ndarray) -> Told:
    """The tokens of some rows of a split; of an endpoint the texts that were sent.

    Args:
        hashes: of all rows of the split, uint8 `[N, 32]`.

    Raises:
        BackboneError: a text that cannot be tokenised, by its row in the source.
        SourceError: a text no longer has its hash: the file that it is read from was written.
    """
    texts, pairs = split.texts(rows), split.pairs(rows)
    if not np.array_equal(row_hashes(texts, pairs), hashes[rows]):
        raise SourceError(
            f"texts of {split.name} changed while they were read",
            hint="run the same command again once no program writes to the data",
        )
    with naming_rows(split, rows):
        return encoder.tokenize(texts, pairs)


@contextmanager
def naming_rows(split: Split, rows: np.ndarray) -> Iterator[None]:
    """Let an error of one of these rows say which row of the source it is."""
    try:
        yield
    except BadRow as error:
        row = int(split.row_numbers[rows[error.row]]) + 1
        raise BackboneError(f"row {row} of {split.name}: {error.what}", hint=error.hint) from None
