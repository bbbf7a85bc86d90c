"""Blends of heads: one head whose logits are the mean of those chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from featcache.errors import HeadError
from featcache.evaluation.calibration import fit_temperature
from featcache.evaluation.metrics import score
from featcache.heads.blend import check_foldable, choose_blend, part_read_by, weighted_sum, widened
from featcache.heads.features import NEVER, LabelledFeatures
from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.rows import WordRows
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import Linear, Mlp, Neighbours, Scorer
from tests.support.feature_rows import clusters

NAMES = ("a", "b", "c")
C, V, WIDTH = 3, 5, 7  # labels, n-grams, columns of the joined views


def noisy_heads(count: int, seed: int = 0) -> tuple[list[Linear], LabelledFeatures]:
    """Nearest means, each with errors of its own and a scale of its own."""
    x, y = clusters(300, noise=2.0)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    dice, means = np.random.default_rng(seed), np.stack([x[y == label].mean(0) for label in range(3)])
    heads = []
    for _ in range(count):
        weight = (means + 0.5 * dice.normal(size=means.shape)) * dice.uniform(0.3, 5)
        heads.append(Linear(weight.astype(np.float32), np.zeros(3, np.float32)))
    return heads, LabelledFeatures(x, y)


def loss(logits: np.ndarray, y: np.ndarray) -> float:
    several = y.ndim == 2
    return score(probabilities_of(logits, 1.0, multi_label=several), y, NAMES).log_loss


def calibrated(head: Linear, rows: LabelledFeatures) -> np.ndarray:
    logits = head.logits(rows.x)
    return logits / fit_temperature(logits, rows.y)


def chosen_of(heads: list[Linear], rows: LabelledFeatures, most: int) -> tuple[np.ndarray, Scorer]:
    """The shares of a blend of these heads, and the blend."""
    shares, factors = choose_blend([head.logits(rows.x) for head in heads], rows.y, most)
    return shares, weighted_sum(heads, factors)


@pytest.mark.parametrize("several", [False, True])
def test_the_blend_is_the_mean_of_the_chosen_heads_and_better_than_each(several: bool) -> None:
    heads, rows = noisy_heads(6)
    if several:
        rows = rows._replace(y=np.eye(3, dtype=np.uint8)[rows.y])
    shares, found = chosen_of(heads, rows, 10)
    pairs = zip(shares, heads, strict=True)
    expected = np.sum([share * calibrated(head, rows) for share, head in pairs], axis=0)
    np.testing.assert_allclose(found.logits(rows.x), expected, rtol=1e-4, atol=1e-4)
    assert np.count_nonzero(shares) > 1 and shares.sum() == pytest.approx(1)
    assert loss(expected, rows.y) < min(loss(calibrated(head, rows), rows.y) for head in heads)


def test_at_most_so_many_heads_are_taken_and_one_is_the_best_alone() -> None:
    heads, rows = noisy_heads(5)
    assert np.count_nonzero(chosen_of(heads, rows, 2)[0]) <= 2
    (alone,) = np.flatnonzero(chosen_of(heads, rows, 1)[0])
    assert alone == min(range(5), key=lambda number: loss(calibrated(heads[number], rows), rows.y))


def test_a_class_without_train_rows_is_never_predicted_by_a_blend() -> None:
    heads, rows = noisy_heads(4)
    rows = rows._replace(y=rows.y % 2)
    for head in heads:
        head.weight[2], head.bias[2] = 0, -NEVER
    _, found = chosen_of(heads, rows, 4)
    assert isinstance(found, Linear)
    assert found.bias[2] == pytest.approx(-NEVER) and not found.weight[2].any()
    assert (found.logits(rows.x).argmax(1) < 2).all()


def a_scorer(kind: str, width: int, dice: np.random.Generator) -> Scorer:
    def draw(*shape: int) -> np.ndarray:
        return dice.normal(size=shape).astype(np.float32)

    if kind == "linear":
        return Linear(draw(C, width), draw(C))
    if kind == "mlp":
        return Mlp(draw(4, width), draw(4), draw(C, 4), draw(C))
    inner = None if kind == "words" else a_scorer(kind.partition("+")[2], width, dice)
    return WordScorer(draw(C, V), draw(C), inner, float(dice.uniform(0.2, 2)))


@given(
    kinds=st.lists(
        st.sampled_from(["linear", "mlp", "words", "words+linear", "words+mlp"]), min_size=1, max_size=4
    ),
    seed=st.integers(0, 1000),
)
def test_a_weighted_sum_of_any_layers_has_the_sum_of_their_logits(kinds: list[str], seed: int) -> None:
    """Each head reads some columns of the joined views; every mix folds into one scorer."""
    dice = np.random.default_rng(seed)
    factors = dice.uniform(0.1, 1, (len(kinds), C))
    words = csr_matrix(dice.normal(size=(20, V)).astype(np.float32))
    ngrams = Ngrams.__new__(Ngrams)
    joined = WordRows(ngrams, words, dice.normal(size=(20, WIDTH)).astype(np.float32))
    wide, expected = [], np.zeros((20, C))
    for kind, factor in zip(kinds, factors, strict=True):
        columns = dice.permutation(WIDTH)[: dice.integers(1, WIDTH + 1)]
        scorer = a_scorer(kind, len(columns), dice)
        own = WordRows(ngrams, words, joined.dense[:, columns] if "+" in kind else None)  # type: ignore[index]
        x = own if kind.startswith("words") else joined.dense[:, columns]  # type: ignore[index]
        expected += factor * scorer.logits(x)
        wide.append(widened(scorer, columns, WIDTH))
    found = weighted_sum(wide, factors)
    np.testing.assert_allclose(found.logits(part_read_by(found, joined)), expected, rtol=1e-3, atol=1e-3)
    if all(kind == "linear" for kind in kinds):
        assert isinstance(found, Linear)


def test_a_scorer_that_is_no_sum_of_layers_is_refused() -> None:
    rows = np.eye(3, dtype=np.float32)
    stored = Neighbours(rows, np.arange(3), 3, 1, mean=np.zeros(3), scale=np.ones(3))
    words = WordScorer(np.zeros((3, V), np.float32), np.zeros(3, np.float32), stored)
    for scorer in (stored, words):
        with pytest.raises(HeadError, match="neighbours-1 cannot be part of a blend: its neighbours scorer"):
            check_foldable(scorer, "neighbours-1")
    check_foldable(Linear(rows, rows[0]), "x")
