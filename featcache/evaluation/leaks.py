"""Rows of validation and test whose text an earlier split has, too: scores with and without them.

A head may know such a row by heart; its score on the other rows, the clean ones, says more about new texts.
Texts are compared by keys of 64 bits: sorted arrays serve ten million rows, and of so many rows a wrong match
has a probability of about 10^-6.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

NORMALISED = "normalised text"
EXACT = "exact text"


@dataclass(frozen=True)
class Leaks:
    """Which rows of the splits after train leak.

    Attributes:
        rule: `NORMALISED` (by `featcache.system.text.normalised`), or `EXACT` without the texts.
        rows: bool `[N]` by split: True where an earlier split has the text (and its pair).
    """

    rule: str = NORMALISED
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, keys: Mapping[str, np.ndarray], rule: str) -> Leaks:
        """From keys by split, in the order train, validation, test; see `featcache.fingerprint.row_keys`."""
        return cls(rule, leaked_rows(keys))

    def clean(self, split: str) -> np.ndarray | None:
        """Numbers of the rows of `split` that do not leak, int64; None where no row leaks, or every one."""
        leaked = self.rows.get(split)
        if leaked is None or not leaked.any() or leaked.all():
            return None
        return np.flatnonzero(~leaked)


NO_LEAKS = Leaks()


def leaked_rows(keys: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """bool `[N]` for each split but the first: whether a split before it has the key.

    Args:
        keys: uint64 `[N]` by split, in their order.
    """
    found: dict[str, np.ndarray] = {}
    earlier = np.zeros(0, np.uint64)
    for before, split in itertools.pairwise(keys):
        earlier = np.sort(np.concatenate([earlier, keys[before]]))
        found[split] = _is_in(keys[split], earlier)
    return found


def _is_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """bool `[N]`: which values are in a sorted array; `np.isin` takes minutes for ten million."""
    found = np.zeros(len(values), bool)
    if len(ordered):
        order = np.argsort(values)  # neighbours are looked up one after the other: ten times as fast
        wanted = values[order]
        places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        found[order] = ordered[places] == wanted
    return found
