"""Likely label errors: planted errors are found, and copies of a text share a fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from featcache.errors import HeadError, UsageError
from featcache.inspection import label_errors as module
from featcache.inspection.label_errors import _assign_folds, fit_reference, likely_errors, out_of_fold
from tests.support.feature_rows import clusters, standardised, tagged


def flipped(y: np.ndarray, count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).permutation(len(y))[:count]
    wrong = y.copy()
    wrong[rows] = (wrong[rows] + 1) % classes
    return wrong, rows


def test_likely_errors_finds_planted_errors_first() -> None:
    x, y = clusters(900, noise=0.4)
    wrong, planted = flipped(y, 45, 3)
    found = out_of_fold(x, wrong, 3, 0.1, np.arange(900))
    assert found.judged.all()
    rows = likely_errors(wrong, found.probabilities)
    assert len(np.intersect1d(rows, planted)) >= 40 and len(rows) <= 60
    assert np.isin(rows[:30], planted).mean() >= 0.95


def test_likely_errors_finds_planted_errors_of_several_labels() -> None:
    x, _ = tagged(600)
    y = (x[:, :3] > np.median(x[:, :3], axis=0)).astype(np.uint8)  # learnable without noise
    planted = np.random.default_rng(1).permutation(600)[:30]
    y[planted, 0] ^= 1
    found = out_of_fold(x, y, 3, 1.0, np.arange(600))
    rows = likely_errors(y, found.probabilities)
    assert np.isin(planted, rows).mean() > 0.6 and np.isin(rows[:15], planted).mean() > 0.8


def test_likely_errors_finds_none_in_clean_labels() -> None:
    x, y = clusters(300, noise=0.05)
    found = out_of_fold(x, y, 3, 1.0, np.arange(300))
    assert len(likely_errors(y, found.probabilities)) == 0


def test_out_of_fold_matches_scikit_learn_heads_fitted_without_the_row() -> None:
    x, y = clusters(200)
    groups = np.arange(200)
    found = out_of_fold(x, y, 3, 0.5, groups, folds=4, seed=3).probabilities
    fold_of = _assign_folds(y, groups, 4, 3)
    (scaled,) = standardised(x)
    for fold in range(4):
        kept = fold_of != fold
        model = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(scaled[kept], y[kept])
        assert np.allclose(model.predict_proba(scaled[~kept]), found[~kept], atol=5e-3)


def test_out_of_fold_keeps_copies_of_a_text_in_one_fold() -> None:
    x, y = clusters(300, width=40, noise=0.5)  # wide enough that a head learns rows by heart
    wrong, planted = flipped(y, 15, 3)
    x, wrong = np.concatenate([x, x[planted]]), np.concatenate([wrong, wrong[planted]])
    groups = np.concatenate([np.arange(300), planted])
    both = np.concatenate([planted, np.arange(300, 315)])

    def belief(groups: np.ndarray) -> float:
        found = out_of_fold(x, wrong, 3, 100.0, groups).probabilities
        return float(found[both, wrong[both]].mean())

    assert belief(groups) < 0.5 * belief(np.arange(315))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=60), st.integers(2, 6))
def test_assign_folds_keeps_groups_together_and_folds_alike(rows: list[tuple[int, int]], folds: int) -> None:
    y, groups = (np.array(column) for column in zip(*rows, strict=True))
    distinct = len(set(groups.tolist()))
    if distinct < folds:
        with pytest.raises(HeadError, match="too few for"):
            _assign_folds(y, groups, folds, 0)
        return
    fold_of = _assign_folds(y, groups, folds, 0)
    assert set(fold_of.tolist()) == set(range(folds))
    assert all(len(set(fold_of[groups == group].tolist())) == 1 for group in groups)
    sizes = [len(set(groups[fold_of == fold].tolist())) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= 1


def test_out_of_fold_does_not_judge_a_label_that_occurs_once() -> None:
    x, y = clusters(100)
    y[17] = 3
    found = out_of_fold(x, y, 4, 0.1, np.arange(100))
    assert np.flatnonzero(~found.judged).tolist() == [17]


def test_out_of_fold_refuses_a_single_class() -> None:
    x, _ = clusters(50)
    with pytest.raises(HeadError, match="single class"):
        out_of_fold(x, np.zeros(50, np.int64), 3, 1.0, np.arange(50))


def test_likely_errors_without_cleanlab_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.system.packages.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="cleanlab") as caught:
        likely_errors(np.zeros(3, np.int64), np.ones((3, 1)))
    assert caught.value.hint == "pip install 'featcache[report]'"


def test_likely_errors_of_no_rows() -> None:
    assert likely_errors(np.zeros(0, np.int64), np.zeros((0, 2))).tolist() == []


@pytest.mark.parametrize("several", [False, True])
def test_fit_reference_takes_the_penalty_that_is_best_on_validation(several: bool) -> None:
    make: Any = tagged if several else clusters
    (x, y), held_out = make(150, seed=1), make(120, seed=2)
    classes = 4 if several else 3
    found = fit_reference((x, y), held_out, classes)
    assert found.C in module.PENALTIES
    said = found.probabilities(held_out[0])
    assert said.shape == (120, classes) and (said >= 0).all() and (said <= 1).all()
    if not several:
        train, test = standardised(x, held_out[0])
        model = LogisticRegression(C=found.C, tol=1e-8, max_iter=5000).fit(train, y)
        assert np.allclose(model.predict_proba(test), said, atol=5e-3)
