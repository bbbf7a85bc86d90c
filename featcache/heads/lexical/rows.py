"""Rows with the n-grams of their texts, and perhaps the features of a backbone beside them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.stored_rows import SparseRows


@dataclass(frozen=True, eq=False)
class WordFit:
    """A head of words, and what it was made of.

    Attributes:
        scorer: a `WordScorer`.
        loss: log loss of validation after temperature scaling.
        about: how its words are weighted.
        seconds: that the fit took.
        made_of: arrays that are the same in another fit with the same result.
    """

    scorer: Any
    loss: float
    about: dict[str, Any]
    seconds: float
    made_of: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class WordRows:
    """Features `[N, D + V]` of which V are sparse; passed where heads take a matrix `[N, D]`.

    Attributes:
        ngrams: whose columns `words` has.
        words: float32 `[N, V]`, TF-IDF.
        dense: `[N, D]`, features of a backbone as they are stored; None without a backbone.
        seconds: that finding the n-grams of train and counting them in all splits took; of train rows.
        others: the same rows by n-grams of other kinds, among which validation chooses; without `dense`.
        fits: heads of words that were fitted on these train rows, for other heads of the same rows.
    """

    ngrams: Ngrams
    words: SparseRows
    dense: np.ndarray | None = None
    seconds: float = 0.0
    others: tuple[WordRows, ...] = ()
    fits: list[WordFit] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.words.shape[1] + (0 if self.dense is None else self.dense.shape[1])

    @property
    def ndim(self) -> int:
        return 2

    @property
    def nbytes(self) -> int:
        """Of the features of a backbone: words are counted when they are needed."""
        return 0 if self.dense is None else self.dense.nbytes

    def __len__(self) -> int:
        return int(self.words.shape[0])

    def __getitem__(self, rows: Any) -> WordRows:
        dense = None if self.dense is None else self.dense[rows]
        return WordRows(self.ngrams, self.words[rows], dense, others=tuple(one[rows] for one in self.others))

    @property
    def kinds(self) -> tuple[WordRows, ...]:
        """The words alone, by each kind of n-grams."""
        return (replace(self, dense=None, others=()), *self.others)

    def read_by(self, ngrams: Ngrams) -> WordRows | None:
        """These rows by n-grams of one kind; None where they were not counted."""
        found = next((kind for kind in self.kinds if kind.ngrams.equals(ngrams)), None)
        return found and replace(found, dense=self.dense, seconds=self.seconds)

    def as_array(self) -> np.ndarray:
        """Itself, for a type checker that wants an array."""
        return cast(np.ndarray, self)
