"""Rows for logistic regressions, and scikit-learn's solution of them to the end of float64."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression


def rows(n: int, d: int, classes: int, *, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features whose spectrum falls like that of sentence embeddings, and labels."""
    r = np.random.default_rng(seed)
    mixing = np.linalg.qr(r.normal(size=(d, d)))[0]
    x = (r.normal(size=(n, d)) / (1.0 + np.arange(d))) @ mixing
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    signal = x @ r.normal(size=(d, classes)) / np.sqrt(d) + noise * r.gumbel(size=(n, classes))
    y = signal.argmax(axis=1)
    y[:classes] = np.arange(classes)
    return x, y.astype(np.int64)


def reference(x: np.ndarray, y: np.ndarray, penalty: float, weight: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lbfgs may stop short of 1e-10 at the end of float64
        model = LogisticRegression(C=penalty, tol=1e-10, max_iter=20000)
        return model.fit(x.astype(np.float64), y, sample_weight=weight)
