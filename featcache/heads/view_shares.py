"""How much each view of a head adds to its logits: which layers, or words, carry the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.cache.view_names import LEXICAL, cached_views, split_view
from featcache.heads.lexical.rows import WordRows
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.scorers import Attentive, Linear, Scorer
from featcache.system.sharded_array import JoinedColumns

ROWS = 5000  # that are looked at


def view_shares(scorer: Scorer, x: Any, view: str) -> dict[str, float] | None:
    """The share of each view in the variance of the logits; the shares add up to 1.

    The logits of a linear head are a sum over its views. A view's share is the covariance of its part with
    the whole over the variance of the whole, summed over the classes; a part that works against the others
    has a share below 0.

    Args:
        x: features `[N, D]` that the head reads, of several views.
        view: their names, joined.

    Returns:
        None for a single view, and for a head that is not linear.
    """
    names = split_view(view)
    if len(names) == 1:
        return None
    rows = np.unique(np.linspace(0, len(x) - 1, min(ROWS, len(x))).astype(np.int64))
    parts = _parts(scorer, x, rows, cached_views(view))
    if parts is None:
        return None
    if scorer.classes > 1:  # what all classes have in common decides nothing
        parts = {name: part - part.mean(axis=1, keepdims=True) for name, part in parts.items()}
    centred = {name: part - part.mean(axis=0) for name, part in parts.items()}
    whole = np.sum(list(centred.values()), axis=0)
    total = float((whole * whole).sum())
    if not total > 0:
        return None
    return {name: float((centred[name] * whole).sum()) / total for name in names}


def _parts(scorer: Scorer, x: Any, rows: np.ndarray, cached: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The logits float64 `[M, C]` that each view adds, without bias."""
    if isinstance(scorer, WordScorer) and isinstance(x, WordRows):
        words = {LEXICAL: np.asarray(x.words[rows] @ scorer.weight.T, np.float64)}
        if scorer.dense is None or x.dense is None:
            return words
        dense = _parts(scorer.dense, x.dense, rows, cached)
        return None if dense is None else {name: scorer.share * z for name, z in dense.items()} | words
    matrices: Sequence[np.ndarray]
    if isinstance(scorer, Attentive):
        pooled = scorer.pooled(x[rows])
        matrices, rows = np.split(pooled, len(scorer.queries), axis=1), np.arange(len(pooled))
    elif isinstance(scorer, Linear):
        matrices = x.parts if isinstance(x, JoinedColumns) else (x,)
    else:
        return None
    found, begin = {}, 0
    for name, matrix in zip(cached, matrices, strict=True):
        end = begin + matrix.shape[1]
        found[name] = np.asarray(matrix[rows], np.float64) @ scorer.weight[:, begin:end].T.astype(np.float64)
        begin = end
    return found
