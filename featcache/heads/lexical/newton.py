"""Logistic regression of one class against the rest on sparse rows, to its optimum.

Newton's method, each step by conjugate gradients, as Lin, Weng and Keerthi 2008, "Trust Region Newton Method
for Large-Scale Logistic Regression", but with a line search. The Hessian is only multiplied, never formed.
From the solution of a stronger penalty three or four steps are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ENOUGH = 5e-5  # gradient of a solution, by that at zero and the share of the rarer side
ROUGHLY = 0.1  # of the gradient: what a step leaves of its linear equations
STEPS, PRODUCTS = 50, 200  # at most; products with the Hessian in each step
SHORTEST = 1e-6  # of a step: a shorter one changes nothing


def fit_newton(words: csr_matrix, chosen: np.ndarray, cost: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Weights and bias, float64 `[V + 1]`, that minimise `||theta||^2 / 2 + sum_i cost_i * log loss_i`.

    Args:
        words: float64 `[N, V]`.
        chosen: bool `[N]`, the rows of the class.
        cost: float64 `[N]`, C times the weight of each row.
        start: float64 `[V + 1]`, from where to search.
    """
    from scipy.special import expit

    sign, columns = np.where(chosen, 1.0, -1.0), words.T

    def logits(theta: np.ndarray) -> np.ndarray:
        return np.asarray(words @ theta[:-1] + theta[-1])

    def pulled(rows: np.ndarray) -> np.ndarray:
        return np.append(columns @ rows, rows.sum())

    def loss(theta: np.ndarray, margin: np.ndarray) -> float:
        return float(theta @ theta / 2 + cost @ np.logaddexp(0, -margin))

    def step_from(gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        step, rest = np.zeros_like(gradient), -gradient
        direction, size = rest, float(rest @ rest)
        enough = ROUGHLY**2 * size
        for _ in range(PRODUCTS):
            product = direction + pulled(curvature * logits(direction))
            length = size / float(direction @ product)
            step, rest = step + length * direction, rest - length * product
            before, size = size, float(rest @ rest)
            if size <= enough:
                break
            direction = rest + size / before * direction
        return step

    at_zero = pulled(-sign * cost / 2)
    rarer = min(cost[chosen].sum(), cost[~chosen].sum()) / cost.sum()
    enough, theta = ENOUGH * rarer * float(np.linalg.norm(at_zero)), start
    margin = sign * logits(theta)
    for _ in range(STEPS):
        right = expit(margin)
        gradient = theta - pulled(sign * cost * (1 - right))
        if np.linalg.norm(gradient) <= enough:
            break
        step = step_from(gradient, cost * right * (1 - right))
        change, before, length = sign * logits(step), loss(theta, margin), 1.0
        slope = 1e-4 * float(gradient @ step)
        while loss(theta + length * step, margin + length * change) > before + length * slope:
            length /= 2
            if length < SHORTEST:
                return theta
        theta, margin = theta + length * step, margin + length * change
    return theta
