"""Newton's method finds the optimum that scikit-learn's liblinear finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random
from sklearn.linear_model import LogisticRegression

from featcache.heads.features import LabelledFeatures, WeightedFeatures
from featcache.heads.lexical.fit import PLAIN, fit_lexical
from featcache.heads.lexical.newton import fit_newton
from featcache.heads.lexical.ngrams import Ngrams, NgramSettings
from featcache.heads.lexical.rows import WordRows
from featcache.settings import HeadSettings

ROWS = csr_matrix(random(300, 80, 0.2, random_state=0, dtype=np.float64))


def problem(share: float) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are of the class, and what each costs."""
    draw = np.random.default_rng(int(100 * share))
    logits = np.asarray(ROWS @ draw.normal(size=80)).ravel() + draw.normal(size=300)
    return logits > np.quantile(logits, 1 - share), draw.uniform(0.2, 3, 300)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_the_solution_is_liblinears(share: float, C: float) -> None:
    chosen, weight = problem(share)
    peer = LogisticRegression(C=C, solver="liblinear", dual=False, tol=1e-10, max_iter=10_000)
    peer.fit(ROWS, chosen, sample_weight=weight)
    wanted = ROWS @ peer.coef_[0] + peer.intercept_[0]
    theta = fit_newton(ROWS, chosen, C * weight, np.zeros(81))
    found = ROWS @ theta[:-1] + theta[-1]
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
    far = fit_newton(ROWS, chosen, C * weight, np.random.default_rng(0).normal(size=81) * 5)
    np.testing.assert_allclose(ROWS @ far[:-1] + far[-1], wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_a_head_of_plain_words_is_scikit_learns(
    class_weight: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.heads.lexical.fit.RATIO", ())
    draw = np.random.default_rng(0)
    y = (draw.random(300) < 0.3).astype(int)
    texts = ["".join(draw.choice(list("abcxyz" if label else "xyzabd"[:5]), 8)) for label in y]
    ngrams, words = Ngrams.fit(texts, NgramSettings("char", 1, 2))
    weight = draw.uniform(0.2, 3, 300) if weighted else None
    rows = WordRows(ngrams, words).as_array()
    train = LabelledFeatures(rows, y) if weight is None else WeightedFeatures(rows, y, weight)
    fit = fit_lexical(train, LabelledFeatures(rows, y), 2, HeadSettings(class_weight=class_weight))
    assert fit.about is not None and fit.about["C_words"] in PLAIN
    peer = LogisticRegression(
        C=fit.about["C_words"], solver="liblinear", tol=1e-8, max_iter=10_000,
        class_weight=None if class_weight == "none" else "balanced",
    )  # fmt: skip
    peer.fit(words, y, sample_weight=weight)
    wanted = words @ peer.coef_[0] + peer.intercept_[0]
    np.testing.assert_allclose(fit.best.logits(rows)[:, 1], wanted, atol=2e-3 * np.abs(wanted).max())
