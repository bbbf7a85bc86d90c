"""Blends of linear heads: one head whose logits are the mean of those chosen."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.evaluation.calibration import fit_temperature
from featcache.evaluation.metrics import score
from featcache.heads.blend import blend_linear
from featcache.heads.features import NEVER, LabelledFeatures
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import Linear
from tests.support.feature_rows import clusters

NAMES = ("a", "b", "c")


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


@pytest.mark.parametrize("several", [False, True])
def test_the_blend_is_the_mean_of_the_chosen_heads_and_better_than_each(several: bool) -> None:
    heads, rows = noisy_heads(6)
    if several:
        rows = rows._replace(y=np.eye(3, dtype=np.uint8)[rows.y])
    found, chosen = blend_linear(heads, rows, 10)
    expected = np.mean([calibrated(heads[number], rows) for number in chosen], axis=0)
    np.testing.assert_allclose(found.logits(rows.x), expected, rtol=1e-4, atol=1e-4)
    assert len(set(chosen)) > 1
    assert loss(expected, rows.y) < min(loss(calibrated(head, rows), rows.y) for head in heads)


def test_at_most_so_many_heads_are_taken_and_one_is_the_best_alone() -> None:
    heads, rows = noisy_heads(5)
    assert len(blend_linear(heads, rows, 2)[1]) <= 2
    (alone,) = blend_linear(heads, rows, 1)[1]
    assert alone == min(range(5), key=lambda number: loss(calibrated(heads[number], rows), rows.y))


def test_a_class_without_train_rows_is_never_predicted_by_a_blend() -> None:
    heads, rows = noisy_heads(4)
    rows = rows._replace(y=rows.y % 2)
    for head in heads:
        head.weight[2], head.bias[2] = 0, -NEVER
    found, _ = blend_linear(heads, rows, 4)
    assert found.bias[2] == -NEVER and not found.weight[2].any()
    assert (found.logits(rows.x).argmax(1) < 2).all()
