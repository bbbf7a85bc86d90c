"""Which n-grams train texts have: the vocabulary that scikit-learn's `CountVectorizer` makes of them.

An n-gram that is in two texts begins with one that is a letter shorter and is in two texts, too. So for each
length only the places where such a one begins are looked at; sorting their keys (see `counting`) gives the
distinct n-grams, how often they occur and in how many texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from featcache.heads.lexical.counting import LAST, Found, count_matrix, keys_at, with_columns
from featcache.heads.lexical.letters import (
    WITHIN_WORDS,
    WORDS,
    Letters,
    parts_of_texts,
    read_letters,
    text_of,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LEAST = 2  # texts that have an n-gram of the vocabulary
_TABLE = 1 << 22  # smaller keys are counted in a table


class _Numbered(dict[str, int]):
    """Numbers of words, in the order in which they are asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


@dataclass(frozen=True, eq=False)
class _Level:
    """The n-grams of one length that are in `LEAST` texts.

    Attributes:
        keys: int64 `[n]`, ascending.
        times: `[n]`, how often they occur.
    """

    keys: np.ndarray
    times: np.ndarray


class _NgramSearch:
    """The search for the n-grams of some texts, one letter longer each time."""

    def __init__(self, letters: Letters) -> None:
        self.letters = letters
        self.found: list[Found] = []  # by length, int32
        self._at = np.arange(len(letters.codes), dtype=np.int32)
        self._number = np.zeros_like(self._at)

    def next_length(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The distinct keys where a beginning was kept, how often they occur, and in how many texts."""
        letters, length = self.letters, len(self.found) + 1
        self._at, keys = keys_at(letters, letters.left(), self._at, self._number, length)
        distinct, number, times = _distinct(keys)
        cells = number * letters.texts + letters.row()[self._at]
        cells.sort()
        texts = np.bincount(cells[np.diff(cells, prepend=-1) > 0] // letters.texts, minlength=len(distinct))
        self._number = number.astype(np.int32)
        return distinct, times, texts

    def keep(self, numbers: np.ndarray) -> None:
        """Replace the distinct n-grams by their numbers among those of all texts; -1 drops one."""
        numbers = numbers[self._number]
        kept = numbers >= 0
        self._at, self._number = self._at[kept], numbers[kept].astype(np.int32)
        self.found.append((self._at, self._number))

    def counts(self, columns: Sequence[np.ndarray], width: int) -> csr_matrix:
        """float32 counts `[N, width]`; the columns of the n-grams of each length are -1 where not chosen."""
        places = zip(columns, self.found, strict=True)
        listed = (with_columns(at, of_length[number]) for of_length, (at, number) in places)
        return count_matrix(self.letters, listed, width)


def find_vocabulary(
    texts: Sequence[str],
    analyzer: str,
    lengths: tuple[int, int],
    most: int,
    on_text: Callable[[int], None],
) -> tuple[tuple[str, ...], csr_matrix]:
    """The `most` frequent n-grams of those in `LEAST` texts, sorted, and their float32 counts `[N, V]`.

    Args:
        analyzer: of `featcache.heads.lexical.letters`.
        lengths: of the n-grams, shortest and longest.
        on_text: called with how many texts more were counted.
    """
    from scipy.sparse import csr_matrix, vstack

    numbers, (shortest, longest) = _Numbered(), lengths
    slices = list(parts_of_texts(texts)) or [slice(0)]
    read = [read_letters(texts[rows], analyzer, numbers) for rows in slices]
    words = sorted(numbers)
    if analyzer == WORDS:
        rank = np.empty(len(words), np.int32)
        rank[[numbers[word] for word in words]] = np.arange(len(words))
        read = [replace(letters, codes=rank[letters.codes]) for letters in read]
    searches = [_NgramSearch(letters) for letters in read]
    levels = [_next_level(searches) for _ in range(longest)]
    ngrams, columns = _choose(levels, analyzer, shortest, most)
    counts = []
    for search in searches:
        counts.append(search.counts(columns, len(ngrams)))
        search.found.clear()  # the memory that the counts take
        on_text(search.letters.texts)
    return _names(ngrams, words), csr_matrix(vstack(counts, format="csr"))


def _names(ngrams: np.ndarray, words: Sequence[str]) -> tuple[str, ...]:
    """N-grams as text, of letters `[V, longest]` with -1 behind the last one."""
    if words:
        return tuple(" ".join([words[code] for code in codes if code >= 0]) for codes in ngrams.tolist())
    ends = np.cumsum((ngrams >= 0).sum(axis=1)).tolist()
    whole = text_of(ngrams[ngrams >= 0])
    return tuple(whole[begin:end] for begin, end in pairwise([0, *ends]))


def _next_level(searches: Sequence[_NgramSearch]) -> _Level:
    """The n-grams of all texts that are one letter longer."""
    distinct, times, texts = zip(*(search.next_length() for search in searches), strict=True)
    keys, number = np.unique(np.concatenate(distinct), return_inverse=True)
    kept = np.bincount(number, np.concatenate(texts)) >= LEAST
    numbers = np.where(kept, np.cumsum(kept) - 1, -1)[number]
    ends = np.cumsum([len(some) for some in distinct])
    for search, own in zip(searches, np.split(numbers, ends[:-1]), strict=True):
        search.keep(own)
    return _Level(keys[kept], np.bincount(number, np.concatenate(times))[kept])


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct ones, ascending; for each key its number among them; and how often each occurs."""
    if keys.max(initial=0) >= _TABLE:
        return np.unique(keys, return_inverse=True, return_counts=True)
    times = np.bincount(keys)
    return np.flatnonzero(times), (np.cumsum(times > 0) - 1)[keys], times[times > 0]


def _choose(
    levels: Sequence[_Level], analyzer: str, shortest: int, most: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The letters of the chosen n-grams in their sorted order, and the columns of the n-grams of each length.

    Returns:
        int32 `[V, longest]`, -1 behind the last letter; for each length int32 `[n]`, -1 for those not chosen.
    """
    letters, chosen, some = [], [], np.empty((1, 0), np.int32)
    for length, level in enumerate(levels, 1):
        some = np.column_stack([some[level.keys >> 32], (level.keys & LAST).astype(np.int32)])
        letters.append(np.pad(some, ((0, 0), (0, len(levels) - length)), constant_values=-1))
        if length >= shortest:
            chosen.append(np.ones(len(some), bool))
        else:  # words shorter than `shortest` count as a whole, with the spaces around them
            ends = (some[:, [0, -1]] == ord(" ")).all(axis=1)
            chosen.append(ends & (analyzer == WITHIN_WORDS and length > 1))
    ngrams, times = np.concatenate(letters), np.concatenate([level.times for level in levels])
    numbers = np.flatnonzero(np.concatenate(chosen))
    numbers = numbers[np.lexsort(ngrams[numbers].T[::-1])]
    if len(numbers) > most:  # as scikit-learn does, which decides between n-grams that are equally frequent
        numbers = numbers[np.sort(np.argsort(-times[numbers].astype(np.float32))[:most])]
    columns = np.full(len(ngrams), -1, np.int32)
    columns[numbers] = np.arange(len(numbers))
    ends = np.cumsum([len(level.keys) for level in levels])
    return ngrams[numbers], np.split(columns, ends[:-1])
