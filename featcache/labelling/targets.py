"""Counted answers as what a head learns, and is scored by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featcache.labelling.label_head import LabelHead
from featcache.labelling.pool import TextPool
from featcache.labelling.votes import CountedAnswers


def targets_of(
    counted: CountedAnswers, rows: np.ndarray, labels: Sequence[str], *, multi_label: bool
) -> np.ndarray:
    """The labels of texts: int `[M]`, or multi-hot uint8 `[M, C]`."""
    number = {label: place for place, label in enumerate(labels)}
    given = [[number[label] for label in counted.labels[row]] for row in rows.tolist()]
    if not multi_label:
        return np.array([places[0] for places in given], np.int64)
    hot = np.zeros((len(rows), len(labels)), np.uint8)
    for line, places in zip(hot, given, strict=True):
        line[places] = 1
    return hot


def right_rows(
    head: LabelHead, pool: TextPool, rows: np.ndarray, truth: np.ndarray, classes: int
) -> np.ndarray:
    """bool `[V]`: the texts about which a head is right, in all labels of a text.

    Args:
        rows: int `[V]`, texts of the pool.
        truth: as `targets_of`, of `classes` labels, of which the head may not know the last ones yet.
    """
    p = head.probabilities(pool.x[rows])
    p = np.pad(p, ((0, 0), (0, classes - p.shape[1])))
    if truth.ndim == 2:
        return np.asarray(((p >= 0.5) == truth).all(axis=1))
    return np.asarray(p.argmax(axis=1) == truth)
