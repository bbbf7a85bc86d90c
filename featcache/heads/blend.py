"""Several heads averaged into one, as validation rows choose them.

The mean of the logits of layers is layers again: linear heads of different views become one `W, b` over the
joined views, heads with a hidden layer one with all of their units, and words keep their own weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from featcache.errors import HeadError
from featcache.evaluation.calibration import fit_temperature
from featcache.evaluation.metrics import score
from featcache.heads.features import NEVER
from featcache.heads.lexical.rows import WordRows
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import Linear, Mlp, Scorer


def choose_blend(logits: Sequence[np.ndarray], y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """How much each head counts in a blend, and what its logits are multiplied by.

    Heads are taken one after another, the one whose mean with those before has the lowest log loss, as long
    as that falls; a head may be taken more than once (Caruana et al., Ensemble selection from libraries of
    models, ICML 2004). Each head's logits are divided by its temperature before, so that a head that is too
    sure does not outweigh the others.

    Args:
        logits: `[N, C]` of each head, on validation rows that none was trained on; the best head first.
        y: labels of these rows, int `[N]` or multi-hot `[N, C]`.
        most: how many heads are taken, repeated ones included.

    Returns:
        The share of each of the K heads, float64 `[K]`, which add up to 1; and factors float64 `[K, C]`.
    """
    classes, several = logits[0].shape[1], y.ndim == 2
    names = tuple(map(str, range(classes)))
    factors = np.ones((len(logits), classes))
    for number, part in enumerate(logits):
        # A label that train says nothing about stays as it is.
        learnt = np.abs(part).min(axis=0) < NEVER
        factors[number, learnt] = 1 / fit_temperature(np.clip(part, -NEVER, NEVER), y)
    scaled = [part * factor.astype(np.float32) for part, factor in zip(logits, factors, strict=True)]

    def loss(total: np.ndarray, count: int) -> float:
        return score(probabilities_of(total / count, 1.0, multi_label=several), y, names).log_loss

    taken = np.zeros(len(logits))
    total, lowest = np.zeros_like(scaled[0]), np.inf
    for count in range(1, most + 1):
        losses = [loss(total + part, count) for part in scaled]
        best = int(np.argmin(losses))
        if losses[best] >= lowest:
            break
        lowest, total = losses[best], total + scaled[best]
        taken[best] += 1
    shares = taken / taken.sum()
    return shares, shares[:, None] * factors


def check_foldable(scorer: Scorer, what: str) -> None:
    """Refuse a scorer whose mean with others is not made of layers.

    Args:
        what: names the head in the message.

    Raises:
        HeadError
    """
    inner = scorer.dense if isinstance(scorer, WordScorer) else scorer
    if inner is not None and not isinstance(inner, (Linear, Mlp)):
        raise HeadError(
            f"{what} cannot be part of a blend: its {inner.kind} scorer is not made of layers that add up",
            hint="blend linear, logistic, exact, ridge, discriminant, centroid, mlp and lexical heads",
        )


def weighted_sum(scorers: Sequence[Scorer], factors: np.ndarray) -> Scorer:
    """One scorer whose logits are the sum of those of several, each times its factors.

    Args:
        scorers: of the same features, see `widened`; each passes `check_foldable`.
        factors: `[K, C]`.
    """
    return reduce(_sum, (_times(*pair) for pair in zip(scorers, factors, strict=True) if pair[1].any()))


def widened(scorer: Scorer, columns: np.ndarray, width: int) -> Scorer:
    """A scorer of more features, which looks at some of their columns alone.

    Args:
        columns: int `[D]`, the places of its features among the `width` columns.
    """
    if isinstance(scorer, WordScorer):
        dense = scorer.dense and widened(scorer.dense, columns, width)
        return replace(scorer, dense=dense)
    assert isinstance(scorer, (Linear, Mlp))
    before = scorer.weight if isinstance(scorer, Linear) else scorer.w1
    weight = np.zeros((len(before), width), np.float32)
    weight[:, columns] = before
    return replace(scorer, weight=weight) if isinstance(scorer, Linear) else replace(scorer, w1=weight)


def part_read_by(scorer: Scorer, x: Any) -> Any:
    """Of features with words beside them what a scorer reads: both, the features or the words."""
    if not isinstance(x, WordRows):
        return x
    if not isinstance(scorer, WordScorer):
        return x.dense
    return x if scorer.dense else replace(x, dense=None)


def _times(scorer: Scorer, factor: np.ndarray) -> Scorer:
    """Its logits times `factor` `[C]`."""
    if isinstance(scorer, WordScorer):
        dense = scorer.dense and _times(scorer.dense, scorer.share * factor)
        return WordScorer(_rows_times(scorer.weight, factor), _rows_times(scorer.bias, factor), dense)
    if isinstance(scorer, Linear):
        return Linear(_rows_times(scorer.weight, factor), _rows_times(scorer.bias, factor))
    assert isinstance(scorer, Mlp)
    return replace(scorer, w2=_rows_times(scorer.w2, factor), b2=_rows_times(scorer.b2, factor))


def _rows_times(part: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.asarray(part * (factor if part.ndim == 1 else factor[:, None]), np.float32)


def _sum(one: Scorer, other: Scorer) -> Scorer:
    """A scorer whose logits are the sum of both."""
    words = [part for part in (one, other) if isinstance(part, WordScorer)]
    if words:
        inner = (part.dense if isinstance(part, WordScorer) else part for part in (one, other))
        dense = [part for part in inner if part is not None]
        weight, bias = (
            sum(parts) for parts in zip(*((part.weight, part.bias) for part in words), strict=True)
        )
        return WordScorer(weight, bias, reduce(_sum, dense) if dense else None)  # type: ignore[arg-type]
    if isinstance(one, Linear) and isinstance(other, Linear):
        return Linear(one.weight + other.weight, one.bias + other.bias)
    first, second = _as_mlp(one), _as_mlp(other)
    return Mlp(
        np.concatenate([first.w1, second.w1]),
        np.concatenate([first.b1, second.b1]),
        np.concatenate([first.w2, second.w2], axis=1),
        first.b2 + second.b2,
    )


def _as_mlp(scorer: Scorer) -> Mlp:
    """A linear layer as two units a label, `relu(z) - relu(-z)`, which is exactly z."""
    if isinstance(scorer, Mlp):
        return scorer
    assert isinstance(scorer, Linear)
    both, none = np.eye(scorer.classes, dtype=np.float32), np.zeros(2 * scorer.classes, np.float32)
    return Mlp(
        np.concatenate([scorer.weight, -scorer.weight]),
        none,
        np.concatenate([both, -both], axis=1),
        scorer.bias,
    )
