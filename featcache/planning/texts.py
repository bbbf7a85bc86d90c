"""Texts to plan with, a random sample of the source or made-up ones: their lengths and their work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from featcache.backbone.tokens.unknown_tokens import UnknownTokens
from featcache.data.split import Split
from featcache.errors import UsageError
from featcache.extraction.encode_units import naming_rows
from featcache.fingerprint import row_hashes

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.backbone.tokens.tokenization import Tokens

MAX_TEXTS = 20_000  # tokenised texts
DRAWN_AT_ONCE = 1024
SPREAD = 0.6  # standard deviation of the logarithm of made-up lengths, as in reviews and news
MADE_UP = 4096  # texts
MAX_COUNTED = 1_000_000  # rows among which equal ones are counted


@dataclass(frozen=True)
class Lengths:
    """The lengths of a sample of texts.

    Attributes:
        tokens: int64 `[n]`, encoded tokens of each text; tokens in two windows count once.
        work: float64 `[n]`, floating-point operations of each text; its tokens where no model was loaded.
        truncated: share of truncated texts.
        equal: share of texts that equal another one of the sample; None for made-up texts.
        seconds: seconds to read and tokenise a text; None for made-up texts.
        unknown: share of the tokens that the model's vocabulary does not have; None for made-up texts.
    """

    tokens: np.ndarray
    work: np.ndarray
    truncated: float
    equal: float | None
    seconds: float | None = None
    unknown: float | None = None


class Texts(Protocol):
    """A sample of texts that can be tokenised repeatedly, by number."""

    lengths: Lengths

    def tokenize(self, picked: np.ndarray) -> Tokens: ...

    def hash_seconds(self) -> float:
        """Seconds to hash a row; 0 where that cannot be measured."""


class Drawn:
    """Rows of the splits, drawn without replacement, as many as can be tokenised in `seconds`."""

    def __init__(
        self, encoder: Encoder, splits: Sequence[Split], draw: np.random.Generator, seconds: float
    ) -> None:
        self.encoder = encoder
        self.texts: list[str] = []
        self.pairs: list[str] | None = [] if splits[0].has_pairs else None
        self._unknown: list[UnknownTokens] = []
        ends = np.cumsum([0, *(len(split) for split in splits)])
        order = draw.permutation(ends[-1])[:MAX_TEXTS]
        parts, began = [], time.perf_counter()
        for start in range(0, len(order), DRAWN_AT_ONCE):
            for number, split in enumerate(splits):
                rows = order[start : start + DRAWN_AT_ONCE]
                rows = np.sort(rows[(rows >= ends[number]) & (rows < ends[number + 1])]) - ends[number]
                if len(rows):
                    parts.append(self._read(split, rows))
            if time.perf_counter() - began > seconds:
                break
        tokens, work, truncated = (np.concatenate(column) for column in zip(*parts, strict=True))
        seconds = (time.perf_counter() - began) / len(self.texts)
        whole = self.texts if self.pairs is None else list(zip(self.texts, self.pairs, strict=True))
        equal = 1 - len(set(whole)) / len(whole)
        unknown = UnknownTokens.joined(self._unknown).share
        self.lengths = Lengths(tokens, work, float(truncated.mean()), equal, seconds, unknown=unknown)

    def _read(self, split: Split, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add the texts of these rows; returns their tokens, their work and which are truncated."""
        texts, pairs = split.texts(rows), split.pairs(rows)
        with naming_rows(split, rows):
            tokens = self.encoder.tokenize(texts, pairs)
        self.texts += texts
        if tokens.unknown is not None:
            self._unknown.append(tokens.unknown)
        if self.pairs is not None:
            self.pairs += pairs or []
        counts = tokens.lengths if tokens.windows is None else tokens.windows.n_tokens
        return counts, work_of(self.encoder, tokens, len(texts)), tokens.truncated

    def tokenize(self, picked: np.ndarray) -> Tokens:
        pairs = None if self.pairs is None else [self.pairs[i] for i in picked]
        return self.encoder.tokenize([self.texts[i] for i in picked], pairs)

    def hash_seconds(self) -> float:
        """See `Texts.hash_seconds`."""
        began = time.perf_counter()
        row_hashes(self.texts, self.pairs)
        return (time.perf_counter() - began) / len(self.texts)


def repeated_share(splits: Sequence[Split], rows: int, draw: np.random.Generator) -> float | None:
    """Share of `rows` rows that equal another one of them, and are not encoded again.

    None where it is unknown: the source has fewer rows, or more than `MAX_COUNTED` are planned.
    """
    ends = np.cumsum([0, *(len(split) for split in splits)])
    if not 0 < rows <= min(int(ends[-1]), MAX_COUNTED):
        return None
    picked = np.sort(draw.permutation(int(ends[-1]))[:rows])
    hashes = []
    for number, split in enumerate(splits):
        own = picked[(picked >= ends[number]) & (picked < ends[number + 1])] - ends[number]
        for start in range(0, len(own), DRAWN_AT_ONCE):
            part = own[start : start + DRAWN_AT_ONCE]
            hashes.append(row_hashes(split.texts(part), split.pairs(part)))
    return 1 - len(np.unique(np.concatenate(hashes), axis=0)) / rows


class MadeUp:
    """Texts of random token ids: the time to encode a text depends on its length, hardly on its words."""

    def __init__(self, encoder: Encoder, mean: float, draw: np.random.Generator) -> None:
        if encoder.long_text == "chunks":
            raise UsageError(
                "--tokens makes up texts that are truncated at --max-length, not windows of them",
                hint="use --long-text truncate, or give data",
            )
        self.encoder = encoder
        backbone = encoder.backbone
        least = backbone.tokenizer.num_special_tokens_to_add() + 1
        counts, truncated = made_up_lengths(mean, least, encoder.max_length, draw)
        special = set(getattr(backbone.tokenizer, "all_special_ids", []))
        vocabulary = int(backbone.model.get_input_embeddings().num_embeddings)
        usable = np.setdiff1d(np.arange(vocabulary, dtype=np.int32), np.array([*special], dtype=np.int32))
        self.ids = [draw.choice(usable, count) for count in counts.tolist()]
        self.typed = "token_type_ids" in backbone.tokenizer.model_input_names
        whole = self.tokenize(np.arange(len(counts)))
        self.lengths = Lengths(counts, work_of(encoder, whole, len(counts)), truncated, None)

    def tokenize(self, picked: np.ndarray) -> Tokens:
        from featcache.backbone.tokens.tokenization import Tokens

        ids = np.concatenate([self.ids[i] for i in picked])
        types = np.zeros(len(ids), dtype=np.uint8) if self.typed else None
        counts = np.array([len(self.ids[i]) for i in picked], dtype=np.int64)
        return Tokens(ids, counts, types, np.zeros(len(picked), dtype=bool))

    def hash_seconds(self) -> float:
        """See `Texts.hash_seconds`."""
        return 0.0


def made_up_lengths(
    mean: float, least: int, longest: int, draw: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Log-normal lengths int64 `[4096]` between `least` and `longest`, and the share that was truncated."""
    whole = np.rint(draw.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD, MADE_UP))
    return np.clip(whole, least, longest).astype(np.int64), float((whole > longest).mean())


def work_of(encoder: Encoder, tokens: Tokens, texts: int) -> np.ndarray:
    """Floating-point operations of each text in the blocks that are run, float64 `[texts]`."""
    from featcache.backbone.throughput import useful_flops

    # A text of L tokens takes a L + b L^2 operations: two lengths give a and b.
    one, two = (useful_flops(encoder.backbone, np.array([length])) for length in (1, 2))
    square = (two - 2 * one) / 2
    rows = (one - square) * tokens.lengths + square * tokens.lengths.astype(np.float64) ** 2
    rows *= encoder.depth
    return np.bincount(tokens.texts_of(np.arange(len(rows))), np.maximum(rows, 1.0), minlength=texts)
