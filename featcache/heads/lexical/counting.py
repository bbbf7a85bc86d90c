"""How often each text has each n-gram of a vocabulary, as scikit-learn's `CountVectorizer` counts them.

An n-gram of letters is its first n - 1 letters and one letter more. The n-grams of one length are numbered in
their sorted order, so `number of the first n - 1 letters << 32 | last letter` is a key that stands for the
n-gram exactly, however long it is, and has its place in the order. The n-grams that begin at each letter of
some texts are looked up all at once, one length after the other: the sorted keys of all lengths are a trie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from featcache.heads.lexical.letters import WORDS, Letters, code_points, read_letters

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LAST = (1 << 32) - 1  # the bits of a key that are its last letter

Found: TypeAlias = "tuple[np.ndarray, np.ndarray]"  # where n-grams begin, and their numbers or columns


class _Known(dict[str, int]):
    """The numbers of words; of others -1, a letter that no n-gram has."""

    def __missing__(self, word: str) -> int:
        return -1


class NgramCounter:
    """Counts the n-grams of a vocabulary.

    Args:
        vocabulary: V n-grams, sorted; of words, with a space between two.
        analyzer: of `featcache.heads.lexical.letters`.

    Raises:
        ValueError: they are out of order, or one is there twice.
    """

    def __init__(self, vocabulary: Sequence[str], analyzer: str) -> None:
        self._analyzer, self._width, self._numbers = analyzer, len(vocabulary), _Known()
        units: Sequence[Sequence[str]] = vocabulary
        if analyzer == WORDS:
            units = [ngram.split(" ") for ngram in vocabulary]
            self._numbers.update((word, number) for number, word in enumerate(sorted({*chain(*units)})))
            codes = np.fromiter(map(self._numbers.__getitem__, chain.from_iterable(units)), np.int32)
        else:
            codes = code_points(vocabulary)
        self._levels = list(_levels(codes, np.fromiter(map(len, units), np.int64, len(units))))

    def __call__(self, texts: Sequence[str]) -> csr_matrix:
        """float32 counts `[N, V]`."""
        letters = read_letters(texts, self._analyzer, self._numbers)
        return count_matrix(letters, self._find(letters), self._width)

    def columns_of(self, text: str) -> list[int]:
        """The columns of the n-grams of `text`, the shortest first, in the order of the text."""
        letters = read_letters([text], self._analyzer, self._numbers)
        return [column for _, columns in self._find(letters) for column in columns.tolist()]

    def _find(self, letters: Letters) -> Iterator[Found]:
        """For each length where n-grams of the vocabulary begin, and their columns."""
        at = number = np.arange(len(letters.codes))
        number, left = np.zeros_like(at), letters.left()
        for length, (keys, columns) in enumerate(self._levels, 1):
            at, wanted = keys_at(letters, left, at, number, length)
            number = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known = keys[number] == wanted
            at, number = at[known], number[known]
            yield with_columns(at, columns[number])


def keys_at(letters: Letters, left: np.ndarray, at: np.ndarray, number: np.ndarray, length: int) -> Found:
    """Where n-grams of `length` letters begin, and their keys.

    Args:
        left: of the letters.
        at: where n-grams of one letter less begin.
        number: of each of these.
    """
    fits = left[at] >= length
    at = at[fits]
    return at, number[fits].astype(np.int64) << 32 | letters.codes[at + (length - 1)]


def with_columns(at: np.ndarray, columns: np.ndarray) -> Found:
    """The places of n-grams that have a column, which is not -1, and these columns."""
    listed = columns >= 0
    return at[listed], columns[listed]


def count_matrix(letters: Letters, found: Iterable[Found], width: int) -> csr_matrix:
    """float32 counts `[N, width]` of n-grams by where they begin and their columns."""
    from scipy.sparse import csr_matrix

    row = letters.row()
    cells = np.concatenate([np.empty(0, np.int64), *(row[at] * width + columns for at, columns in found)])
    cells.sort()
    first = np.flatnonzero(np.diff(cells, prepend=-1))
    counts = np.diff(first, append=len(cells)).astype(np.float32)
    rows, columns = np.divmod(cells[first], max(width, 1))
    ends = np.cumsum(np.bincount(rows, minlength=letters.texts))
    return csr_matrix((counts, columns.astype(np.int32), np.append(0, ends)), shape=(letters.texts, width))


def _levels(codes: np.ndarray, lengths: np.ndarray) -> Iterator[Found]:
    """For each length the keys of n-grams and of beginnings of n-grams, and their columns.

    Columns are -1 for beginnings that are no n-grams themselves.

    Args:
        codes: the letters of the sorted n-grams, one after the other.
        lengths: of the n-grams.
    """
    starts, number = np.cumsum(lengths) - lengths, np.zeros_like(lengths)
    for length in range(1, lengths.max(initial=0) + 1):
        some = np.flatnonzero(lengths >= length)
        keys = number[some] << 32 | codes[starts[some] + (length - 1)]
        steps = np.diff(keys, prepend=-1)
        number[some] = numbers = np.cumsum(steps > 0) - 1
        whole = lengths[some] == length
        if (steps < 0).any() or (np.diff(numbers[whole]) == 0).any():
            raise ValueError("they are out of order, or one is there twice")
        columns = np.full(numbers[-1] + 1, -1, np.int32)
        columns[numbers[whole]] = some[whole]
        yield keys[steps > 0], columns
