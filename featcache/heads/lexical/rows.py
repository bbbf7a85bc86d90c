"""Rows with the n-grams of their texts, and perhaps the features of a backbone beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.stored_rows import SparseRows


@dataclass(frozen=True, eq=False)
class WordRows:
    """Features `[N, D + V]` of which V are sparse; passed where heads take a matrix `[N, D]`.

    Attributes:
        ngrams: whose columns `words` has.
        words: float32 `[N, V]`, TF-IDF.
        dense: `[N, D]`, features of a backbone as they are stored; None without a backbone.
        seconds: that finding the n-grams of train and counting them in all splits took; of train rows.
    """

    ngrams: Ngrams
    words: SparseRows
    dense: np.ndarray | None = None
    seconds: float = 0.0

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
        return WordRows(self.ngrams, self.words[rows], None if self.dense is None else self.dense[rows])

    def as_array(self) -> np.ndarray:
        """Itself, for a type checker that wants an array."""
        return cast(np.ndarray, self)
