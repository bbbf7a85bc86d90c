"""Rows of train that are held out where there is no validation or test split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray


def stratified_share(
    labels: NDArray[np.int64] | NDArray[np.uint8], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to keep and rows to hold out, both int64 and ascending.

    The share of each class is rounded up or down so that the total fits; a class of two rows or
    more has rows on both sides, a class of one row is kept.

    Multi-label rows are assigned label by label, the rarest first, as in Sechidis, Tsoumakas, Vlahavas:
    On the Stratification of Multi-Label Data, ECML PKDD 2011. A rare label may have no row held out,
    but every label has a row that is kept.

    Args:
        labels: int64 [N], not negative; or multi-hot uint8 [N, C].
        share: between 0 and 1.
        seed: any integer; it seeds the raw PCG64 stream, which NumPy guarantees not to change.
    """
    keys = np.asarray(np.random.PCG64(seed % 2**64).random_raw(len(labels)))
    if labels.ndim == 1:
        held = _of_each_class(cast("NDArray[np.int64]", labels), share, keys)
    else:
        held = _of_each_label(cast("NDArray[np.uint8]", labels), share, keys)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _of_each_class(labels: NDArray[np.int64], share: float, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool [N], True for the rows held out: those with the lowest keys of each class."""
    counts = np.bincount(labels)
    quotas = counts * share
    held = np.floor(quotas).astype(np.int64)
    by_remainder = np.argsort(held - quotas, kind="stable")
    held[by_remainder[: round(len(labels) * share) - int(held.sum())]] += 1
    held = np.clip(held, np.minimum(counts // 2, 1), np.maximum(counts - 1, 0))
    order = np.lexsort((keys, labels))
    first_of_class = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rank = np.arange(len(labels)) - first_of_class[labels[order]]
    chosen = np.zeros(len(labels), bool)
    chosen[order] = rank < held[labels[order]]
    return chosen


def _of_each_label(labels: NDArray[np.uint8], share: float, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool [N], True for the rows held out: of each label's free rows those with the lowest keys."""
    rows, columns = np.nonzero(labels)
    counts = np.bincount(columns, minlength=labels.shape[1])
    having = np.split(rows[np.lexsort((keys[rows], columns))], np.cumsum(counts)[:-1])
    labels_of = np.split(columns, np.cumsum(np.bincount(rows, minlength=len(labels)))[:-1])
    held, dealt = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
    covered = np.zeros(len(counts), np.int64)  # rows held out so far, by label
    carry = 0.0  # the remainder of rounding goes to the next label; else rare labels would give none
    for label in np.argsort(counts, kind="stable"):
        free = having[label][~dealt[having[label]]]
        wanted = share * counts[label] - covered[label] + carry
        chosen = free[: max(math.floor(wanted + 0.5), 0)]
        if len(free):
            carry = float(np.clip(wanted - len(chosen), -0.5, 0.5))
        dealt[free], held[chosen] = True, True
        for row in chosen:
            covered[labels_of[row]] += 1
    _give_back(held, rows, columns)
    bare = np.flatnonzero(~dealt)
    missing = min(max(round(len(labels) * share), 1), len(labels) - 1) - int(held.sum())
    held[bare[np.argsort(keys[bare])][: max(missing, 0)]] = True
    return held


def _give_back(held: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
    """Take rows out of `held` until every label is in a row that is kept."""
    kept = np.bincount(columns[~held[rows]], minlength=columns.max(initial=-1) + 1)
    for label in np.unique(columns[kept[columns] == 0]):
        having = rows[columns == label]
        if held[having].all():  # a row moved before may have this label too
            held[having[0]] = False


def parts_by_key(
    labels: NDArray[np.int64] | NDArray[np.uint8],
    keys: NDArray[np.uint64],
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Number of the part that each row is in, int64 [N]: 0 to keep, i + 1 for `shares[i]`.

    A row's key and the seed decide alone: rows of one key are in one part, and rows that are added move no
    others. Where a class would be missing in a part, one of its keys is moved there; the rows that are kept
    come first.

    Args:
        labels: int64 [N]; or multi-hot uint8 [N, C].
        keys: of the texts, equal for equal ones.
        shares: of the parts, together below 1.
        seed: any integer.
    """
    mixed = _mixed(keys, seed)
    edges = np.cumsum(shares) * 2.0**64
    places = np.searchsorted(edges, mixed.astype(np.float64), side="right") + 1
    part = np.where(places > len(shares), 0, places)
    for label in range(labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=-1)) + 1):
        rows = np.flatnonzero(labels[:, label] if labels.ndim == 2 else labels == label)
        own, first = np.unique(mixed[rows], return_index=True)
        where = part[rows[first]]
        wanted_parts = min(len(own), len(shares) + 1)
        for wanted in range(wanted_parts):
            if wanted not in where:
                spare = np.bincount(where, minlength=len(shares) + 1)
                spare[:wanted_parts] -= 1
                giver = np.flatnonzero(where == spare.argmax())[0]
                where[giver] = part[mixed == own[giver]] = wanted
    return part


def _mixed(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Keys as random numbers of the seed: one step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
