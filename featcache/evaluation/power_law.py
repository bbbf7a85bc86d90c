"""Error against the number of train rows as an inverse power law, and what it says of more rows.

`error(n) = limit + scale * n^-rate`, none of them negative: the form that learning curves of text and other
classifiers were found to follow past their first few rows (Mukherjee et al. 2003, J. Comput. Biol. 10(2);
Hestness et al. 2017, arXiv:1712.00409; Viering & Loog 2022, arXiv:2103.10948, who also show curves that do
not). For a given rate the fit is linear, so only the rate is searched for (variable projection, Golub &
Pereyra 1973): no starting point, no local minimum, and all resamples at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_POINTS = 4  # three numbers are fitted: with three points nothing would be left to check them
RATES = (0.01, 3.0)
_GRID, _ZOOMS = 65, 4  # rates tried at a time, and how often the best one's surroundings are tried again


@dataclass(frozen=True)
class PowerLaws:
    """One law a resample, each attribute float64 `[R]`.

    Attributes:
        limit: the error that no number of rows gets below.
        scale: what is above it at `base` rows.
        rate: how fast that falls.
        base: the rows that `scale` is about.
    """

    limit: np.ndarray
    scale: np.ndarray
    rate: np.ndarray
    base: float

    def error(self, rows: np.ndarray) -> np.ndarray:
        """Float64 `[R, K]` at rows `[K]`."""
        shares = np.log(np.asarray(rows, np.float64) / self.base)
        return np.asarray(self.limit[:, None] + self.scale[:, None] * np.exp(-np.outer(self.rate, shares)))


def fit_power_laws(rows: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> PowerLaws:
    """Weighted least squares with `limit >= 0`, `scale >= 0` and the rate from 0.01 to 3.

    Args:
        rows: `[K]`, distinct and above 0, at least `LEAST_POINTS`.
        errors: `[R, K]`, not negative.
        weights: `[R, K]` or `[K]`, above 0: one over the variance of each error.

    Raises:
        ValueError: fewer points than that, or shapes that do not fit.
    """
    rows, errors = np.asarray(rows, np.float64), np.asarray(errors, np.float64)
    if rows.ndim != 1 or len(rows) < LEAST_POINTS or errors.ndim != 2 or errors.shape[1] != len(rows):
        raise ValueError(f"rows {rows.shape} and errors {errors.shape}: [K >= {LEAST_POINTS}], [R, K] needed")
    weights = np.broadcast_to(np.asarray(weights, np.float64), errors.shape)
    weights = weights / weights.sum(axis=1, keepdims=True)
    base = float(rows.max())
    shares = np.log(rows / base)
    every = np.arange(len(errors))
    low, high = (np.full(len(errors), np.log(end)) for end in RATES)
    for _ in range(_ZOOMS):
        grid = np.linspace(low, high, _GRID, axis=1)  # of log rate, [R, G]
        limit, scale, loss = _profile(np.exp(grid), shares, errors, weights)
        best = loss.argmin(axis=1)
        low, high = (grid[every, np.clip(best + step, 0, _GRID - 1)] for step in (-1, 1))
    return PowerLaws(limit[every, best], scale[every, best], np.exp(grid[every, best]), base)


def _profile(
    rates: np.ndarray, shares: np.ndarray, errors: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best limit and scale at each rate, and the loss there, each `[R, G]`; `weights` sum to 1.

    A quadratic in two numbers that may not be negative: its minimum, or where that is outside, the better of
    the minima on the two edges, which never are, because errors are not negative.
    """
    powers = np.exp(-rates[:, :, None] * shares)  # [R, G, K]
    mean_power = np.einsum("rgk,rk->rg", powers, weights)
    mean_error = (errors * weights).sum(axis=1)[:, None]
    square = np.einsum("rgk,rgk,rk->rg", powers, powers, weights)
    product = np.einsum("rgk,rk->rg", powers, errors * weights)
    spread = square - mean_power**2
    scale = (product - mean_power * mean_error) / np.maximum(spread, 1e-300)
    limit = mean_error - scale * mean_power
    edges = [(limit, scale), (np.zeros_like(product), product / square), _flat(mean_error, product)]
    losses = []
    for a, b in edges:
        residuals = errors[:, None, :] - a[:, :, None] - b[:, :, None] * powers
        loss = np.einsum("rgk,rgk,rk->rg", residuals, residuals, weights)
        losses.append(np.where((a >= 0) & (b >= 0), loss, np.inf))
    which = np.argmin(losses, axis=0)[None]
    limit, scale, loss = (
        np.take_along_axis(np.stack(parts), which, axis=0)[0]
        for parts in ([a for a, _ in edges], [b for _, b in edges], losses)
    )
    return limit, scale, loss


def _flat(mean_error: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.broadcast_to(mean_error, like.shape), np.zeros_like(like)
