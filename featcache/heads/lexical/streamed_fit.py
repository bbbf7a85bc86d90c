"""Logistic regression, one class against the rest, on sparse rows that are read some at a time."""

from __future__ import annotations

import numpy as np

from featcache.heads.lexical.stored_rows import SparseRows, parts_of

STEPS = 100
REMEMBERED = 5  # steps, of L-BFGS
ENOUGH = 1e-6  # relative gain of a step that is the last


def fit_streamed(
    words: SparseRows, chosen: np.ndarray, ratios: np.ndarray, row_weight: np.ndarray, C: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 `[K, V]` and biases `[K]` of K classes, each against the rest, by SciPy's L-BFGS-B.

    The objective of a class is `||w||^2 / 2 + C * sum_i s_i * log loss_i` of logits `x_i (w * ratio) + b`;
    the weights that are returned are `w * ratio`. All classes are solved in the same passes.

    Args:
        words: `[N, V]`.
        chosen: bool `[N, K]`, which rows are of a class.
        ratios: float32 `[K, V]`, what the columns are multiplied by.
        row_weight: `[N, K]`.
        C: inverse strength of the penalty.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    classes, width = ratios.shape
    mass = C * float(row_weight.sum())  # the objective is divided by it: a mean loss

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        w = theta.reshape(classes, width + 1)
        gradient = w / mass
        gradient[:, -1] = 0
        value = float((w[:, :-1] ** 2).sum()) / (2 * mass)
        scaled, pull = np.asarray((w[:, :-1] * ratios).T, np.float32), np.zeros((width, classes))
        for rows, part in parts_of(words):
            sign = np.where(chosen[rows], 1.0, -1.0)
            margin = sign * (part @ scaled + w[:, -1])
            share = row_weight[rows] * (C / mass)
            value += float((np.logaddexp(0, -margin) * share).sum())
            error = -sign * expit(-margin) * share
            pull += part.T @ error
            gradient[:, -1] += error.sum(axis=0)
        gradient[:, :-1] += pull.T * ratios
        return value, gradient.ravel()

    start = np.zeros(classes * (width + 1))
    options = {"maxiter": STEPS, "maxcor": REMEMBERED, "ftol": ENOUGH, "gtol": 1e-9}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    found = found.reshape(classes, width + 1)
    return np.asarray(found[:, :-1] * ratios, np.float32), found[:, -1]
