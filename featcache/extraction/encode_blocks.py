"""Blocks of texts -> committed blocks of features; tokenised ahead of the model, written behind it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.cache.staging import Staging
from featcache.data.split import Split
from featcache.errors import BackboneError, BadRow
from featcache.extraction.partition import Division

if TYPE_CHECKING:
    from filelock import FileLock

    from featcache.backbone.encoder import Encoder, Tokens
    from featcache.backbone.throughput import Speedometer

POLL = 0.1  # seconds between two looks for work where there is none


class Unclaimed:
    """In the place of a lock, for a block that was dealt to this process."""

    def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Claim:
    """The right to encode a block."""

    number: int
    lock: FileLock | Unclaimed


def encode_blocks(
    encoder: Encoder,
    split: Split,
    division: Division,
    staging: Staging,
    claims: Iterable[Claim | None],
    step: Callable[[int, int], None],
    speed: Speedometer | None,
    ahead: int,
) -> None:
    """Encode and commit each block that is claimed.

    Args:
        claims: blocks to encode; None where there is none at the moment, but may be later.
        step: called after each batch with the texts and the tokens done in it.
        ahead: blocks that are claimed and tokenised before the model is there for them.

    Raises:
        BackboneError: a text that cannot be encoded, by its row in the source.
        CacheError: a block that cannot be written.
    """
    held: dict[int, FileLock | Unclaimed] = {}

    def commit(claim: Claim, arrays: dict[str, np.ndarray]) -> None:
        staging.commit(claim.number, arrays)
        held.pop(claim.number).release()

    try:
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for claim, tokens in _tokenized(encoder, split, division, claims, held, ahead):
                with naming_rows(split, division.rows(claim.number)):
                    arrays = _encode(encoder, tokens, step, speed)
                if writing:
                    writing.result()  # at most one block waits to be written; its error ends the work
                writing = writer.submit(commit, claim, arrays)
            if writing:
                writing.result()
    finally:
        for lock in held.values():
            lock.release()


def _encode(
    encoder: Encoder, tokens: Tokens, step: Callable[[int, int], None], speed: Speedometer | None
) -> dict[str, np.ndarray]:
    if speed:
        speed.expect(tokens.lengths)
    encoded = encoder.encode(tokens, step)
    return {
        **encoded.views,
        "n_tokens": encoded.n_tokens,
        "truncated": encoded.truncated.astype(np.uint8),
    }


def _tokenized(
    encoder: Encoder,
    split: Split,
    division: Division,
    claims: Iterable[Claim | None],
    held: dict[int, FileLock | Unclaimed],
    ahead: int,
) -> Iterator[tuple[Claim, Tokens]]:
    """Tokens of each claimed block, made in a thread that stays `ahead` blocks ahead of the model."""

    def tokenize(number: int) -> Tokens:
        rows = division.rows(number)
        with naming_rows(split, rows):
            return encoder.tokenize(split.texts(rows), split.pairs(rows))

    with ThreadPoolExecutor(1) as pool:
        queue: deque[tuple[Claim, Future[Tokens]]] = deque()
        try:
            for claim in claims:
                if claim is not None:
                    held[claim.number] = claim.lock
                    queue.append((claim, pool.submit(tokenize, claim.number)))
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


@contextmanager
def naming_rows(split: Split, rows: np.ndarray) -> Iterator[None]:
    """Let an error of one of these rows say which row of the source it is."""
    try:
        yield
    except BadRow as error:
        row = int(split.row_numbers[rows[error.row]]) + 1
        raise BackboneError(f"row {row} of {split.name}: {error.what}", hint=error.hint) from None
