"""Texts longer than the longest length: overlapping windows that are pooled to one vector.

The cheaper way keeps the first and the last part of a text (head + tail in Sun et al. 2019, "How to
Fine-Tune BERT for Text Classification?", arXiv:1905.05583).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from featcache.errors import BackboneError, UsageError

SAMPLES = ("a", "的", "1", ".")  # one of them is a token of every vocabulary


@dataclass(frozen=True)
class Frame:
    """What surrounds the tokens of every text, and so of every part of it.

    Attributes:
        first, last: special tokens before and after.
        prompt: token ids of the prompt alone, without special tokens.
    """

    first: int
    last: int
    prompt: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, prompt: str) -> Frame:
        """What `tokenizer` puts around a text, and the tokens of the prompt.

        Raises:
            BackboneError: the tokenizer's special tokens cannot be distinguished from the text's own.
        """
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        for sample in SAMPLES:
            bare = tokenizer(sample, add_special_tokens=False)["input_ids"]
            framed = tokenizer(sample)["input_ids"]
            more = len(framed) - len(bare)
            places = [at for at in range(more + 1) if framed[at : at + len(bare)] == bare] if bare else []
            if len(places) == 1:
                return cls(places[0], more - places[0], tuple(before))
        raise BackboneError(
            "cannot tell this tokenizer's special tokens from those of a text",
            hint="use --long-text truncate",
        )

    def head(self, ids: np.ndarray) -> int:
        """How many tokens of a text (special ones included) precede its own words.

        A tokenizer may merge the prompt's last blank with the text's first word; it then belongs to the text.
        """
        prompt = np.array(self.prompt, dtype=np.int64)
        start = ids[self.first : self.first + len(prompt)]
        return self.first + int(np.cumprod(start == prompt[: len(start)]).sum())


def check_overlap(overlap: int, frame: Frame, limit: int) -> None:
    """Refuse windows that have no room for text, or that would run tokens more than about twice.

    Raises:
        UsageError
    """
    room = limit - frame.first - frame.last - len(frame.prompt)
    if room < 1:
        raise UsageError(
            f"--max-length {limit} leaves no room for text beside a prompt of {len(frame.prompt)} tokens",
            hint="use a larger --max-length or a shorter --prompt",
        )
    if overlap > room // 2:
        raise UsageError(
            f"--overlap {overlap}: windows of --max-length {limit} hold {room} tokens of text",
            hint=f"use --overlap {room // 2} or less, so that no token is in many windows",
        )


def chunks(ids: np.ndarray, frame: Frame, limit: int, overlap: int) -> list[np.ndarray]:
    """The tokens of each window, as places in `ids` (special tokens and prompt are in each).

    Args:
        ids: token ids of one whole text, with its special tokens.
        limit: tokens of the longest window; a text that fits is its only window.
        overlap: tokens that a window shares with the next.

    Returns:
        int64, each at most `limit` long; together they hold every place.
    """
    count = len(ids)
    if count <= limit:
        return [np.arange(count)]
    head, tail = frame.head(ids), np.arange(count - frame.last, count)
    room, end = limit - head - frame.last, count - frame.last
    starts = range(head, max(end - overlap, head + 1), room - overlap)
    before = np.arange(head)
    return [np.concatenate([before, np.arange(at, min(at + room, end)), tail]) for at in starts]


def head_and_tail(ids: np.ndarray, frame: Frame, limit: int) -> list[np.ndarray]:
    """One window: the first and the last half of what there is room for, as places in `ids`."""
    count = len(ids)
    if count <= limit:
        return [np.arange(count)]
    head = frame.head(ids)
    ending = (limit - head - frame.last) // 2 + frame.last
    return [np.concatenate([np.arange(limit - ending), np.arange(count - ending, count)])]


@dataclass(frozen=True)
class Windows:
    """Which windows belong to which text.

    Attributes:
        counts: int64 `[N]`, windows of each text, at least one; they are neighbours.
        lengths: int64 `[sum of counts]`, tokens of each window.
        n_tokens: int64 `[N]`, tokens of each whole text, none counted twice.
    """

    counts: np.ndarray
    lengths: np.ndarray
    n_tokens: np.ndarray

    @cached_property
    def owner(self) -> np.ndarray:
        """The text of each window, int64."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def starts(self) -> np.ndarray:
        """The first window of each text, int64 `[N]`."""
        starts: np.ndarray = np.cumsum(self.counts) - self.counts
        return starts

    def join(self, values: np.ndarray, poolings: Sequence[str]) -> np.ndarray:
        """One vector a text out of those of its windows.

        `mean`, `weightedmean`: the mean weighted by tokens, `cls`: the plain mean, `last`: the last window's,
        `max`: the largest of each dimension, `mean_sqrt_len`: the sum over all windows' tokens, over the root
        of their number. Joined poolings: each in its part of the vector.

        Args:
            values: float32 `[windows, D]`.

        Returns:
            float32 `[N, D]`; a text of one window has exactly that window's vector.
        """
        parts = np.split(values, len(poolings), axis=1)
        joined = [self._join(part, pooling) for part, pooling in zip(parts, poolings, strict=True)]
        return joined[0] if len(joined) == 1 else np.concatenate(joined, axis=1)

    def _join(self, values: np.ndarray, pooling: str) -> np.ndarray:
        joined: np.ndarray
        if pooling == "last":
            joined = values[self.starts + self.counts - 1]
            return joined
        if pooling == "max":
            joined = np.maximum.reduceat(values, self.starts)
            return joined
        weights = np.ones(len(self.lengths)) if pooling == "cls" else self.lengths
        share = weights / np.repeat(np.add.reduceat(weights, self.starts), self.counts)
        if pooling == "mean_sqrt_len":
            share = np.sqrt(share)
        joined = np.add.reduceat(values * share[:, None], self.starts).astype(np.float32)
        return joined

    def count_texts(self, progress: Callable[[int, int], None]) -> Callable[[np.ndarray, int], None]:
        """From a callback for texts and tokens, one for rows of windows: a text is done with its last one."""
        left = self.counts.copy()

        def done(rows: np.ndarray, tokens: int) -> None:
            texts = self.owner[rows]
            np.subtract.at(left, texts, 1)
            progress(int((left[np.unique(texts)] == 0).sum()), tokens)

        return done


def groups(texts: Sequence[str], most: int = 1 << 22) -> list[slice]:
    """Slices of neighbouring texts of at most `most` characters in total; a longer text is alone."""
    found, start, filled = [], 0, 0
    for place, text in enumerate(texts):
        if place > start and filled + len(text) > most:
            found.append(slice(start, place))
            start, filled = place, 0
        filled += len(text)
    return [*found, slice(start, len(texts))]
