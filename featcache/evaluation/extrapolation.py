"""Extrapolation of learning curves: the power law of the scores, its intervals, and reasons to doubt it.

`error(n) = limit + scale * (n / base)^-rate`, none of them negative: the form that learning curves of
classifiers follow past their first few rows (Mukherjee et al. 2003, J. Comput. Biol. 10(2); Hestness et al.
2017, arXiv:1712.00409; Viering & Loog 2022, arXiv:2103.10948, who also show curves that do not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.evaluation.bootstrap import CONFIDENCE

FACTORS = (2, 4, 10)
LEAST_POINTS = 4  # three numbers are fitted: with three points nothing would be left to check them
LEAST_SPAN = 8  # the largest size should be so many times the smallest one
LAST_STRETCH = 4  # a curve that still grows has grown over the last factor of so many rows
RATES = (0.01, 3.0)
_GRID, _ZOOMS = 65, 4  # rates tried at a time, and how often the grid is refined around the best one


@dataclass(frozen=True)
class MeasuredScores:
    """Scores of heads by size and order of the rows.

    Attributes:
        rows: int `[K]`, ascending.
        scores: `[K, S]`, 0 to 1, higher is better.
        draws: `[K, S, R]`, the score of each bootstrap resample of the rows scored on; resample r is of the
            same rows for every head.
        held_out: how many rows they were scored on.
    """

    rows: np.ndarray
    scores: np.ndarray
    draws: np.ndarray
    held_out: int

    def standard_errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the mean score, `[K]` each: from the orders (0 if there is only one), and from the rows."""
        orders: int = self.scores.shape[1]
        return self.deviations() / np.sqrt(orders), self.draws.mean(axis=1).std(axis=1)

    def deviations(self) -> np.ndarray:
        """Standard deviation over the orders, `[K]`; 0 for one order, and exactly 0 for equal scores."""
        if self.scores.shape[1] == 1:
            return np.zeros(len(self.rows))
        return np.asarray((self.scores - self.scores[:, :1]).std(axis=1, ddof=1))

    def intervals(self) -> np.ndarray:
        """95 % intervals `[K, 2]` of the mean score, in 0 to 1, for other orders and other rows scored on.

        Both variances are added (orders and rows are crossed: Owen 2007, The pigeonhole bootstrap,
        arXiv:0712.1111, shows that this errs on the wide side); Student's t has the degrees of freedom of
        Welch and Satterthwaite.
        """
        from scipy.stats import t

        by_order, by_row = (error**2 for error in self.standard_errors())
        total = by_order + by_row
        parts = by_order**2 / max(self.scores.shape[1] - 1, 1) + by_row**2 / max(self.held_out - 1, 1)
        freedom = np.divide(total**2, parts, out=np.ones_like(total), where=parts > 0)
        half = t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(total)
        mean = self.scores.mean(axis=1)
        return np.asarray(np.clip(np.stack([mean - half, mean + half], axis=1), 0, 1))

    def resampled(self, seed: int) -> np.ndarray:
        """The mean scores `[R, K]` of resampled rows and resampled orders.

        Each resample draws one order fewer than there are, so that the variance of the mean comes out right
        (Rao & Wu 1988, JASA 83: with as many as there are, it would be too small by 1 / S).
        """
        _, orders, resamples = self.draws.shape
        taken = max(orders - 1, 1)
        shares = np.random.default_rng(seed).multinomial(taken, [1 / orders] * orders, resamples) / taken
        return np.asarray(np.einsum("ksr,rs->rk", self.draws, shares))


@dataclass(frozen=True)
class Forecast:
    """The score at `factor` times the rows of the largest size, and how far it is above the score there."""

    factor: int
    rows: int
    score: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class Backtest:
    """The score at the largest size as the law of all smaller sizes predicts it, and the measured one."""

    rows: int
    score: float
    low: float
    high: float
    measured: float


@dataclass(frozen=True)
class Extrapolation:
    """The law `1 - score = limit + scale * (rows / base)^-rate` and what follows from it.

    Attributes:
        limit, scale, rate: None where there are too few sizes for a law.
        fitted: the law's score at each size that was measured.
        forecasts: one for each of `FACTORS`; none where there is no law.
        backtest: None where the sizes are too few to leave one out.
        doubts: why it should not be relied on, a sentence each; empty if nothing speaks against it.
    """

    limit: float | None
    scale: float | None
    rate: float | None
    base: int
    fitted: tuple[float, ...]
    forecasts: tuple[Forecast, ...]
    backtest: Backtest | None
    doubts: tuple[str, ...]

    def score_at(self, rows: np.ndarray | Sequence[float]) -> np.ndarray:
        """The law's score at rows `[K]`; NaN where there is no law."""
        if self.limit is None or self.scale is None or self.rate is None:
            return np.full(len(rows), np.nan)
        shares = np.asarray(rows, np.float64) / self.base
        return np.asarray(1 - self.limit - self.scale * shares**-self.rate)


@dataclass(frozen=True)
class PowerLaws:
    """One law a resample, each attribute float64 `[R]`.

    Attributes:
        limit: the error that no number of rows gets below.
        scale: the error above the limit at `base` rows.
        rate: how fast that part falls.
        base: the rows at which `scale` holds.
    """

    limit: np.ndarray
    scale: np.ndarray
    rate: np.ndarray
    base: float

    def error(self, rows: np.ndarray) -> np.ndarray:
        """float64 `[R, K]` at rows `[K]`."""
        shares = np.log(np.asarray(rows, np.float64) / self.base)
        return np.asarray(self.limit[:, None] + self.scale[:, None] * np.exp(-np.outer(self.rate, shares)))


def extrapolate(measured: MeasuredScores, seed: int = 0) -> Extrapolation:
    """Fit the law to the mean scores and read it beyond the largest size.

    Sizes weigh by one over the variance of their mean score. The 95 % intervals are percentiles over
    resamples of everything at once: of the rows scored on (the same ones for all sizes), of the orders, and
    of the sizes' weights (each times a draw of the exponential distribution: the Bayesian bootstrap, Rubin
    1981). Where the law holds they are rather too wide (in simulations they cover the truth in 98 to 100 % of
    curves). No data up to the largest size can show that the law holds beyond it.
    """
    rows = measured.rows
    if len(rows) < LEAST_POINTS:
        few = f"{len(rows)} sizes are too few for an extrapolation; {LEAST_POINTS} are needed"
        return Extrapolation(
            None, None, None, base=int(rows[-1]), fitted=(), forecasts=(), backtest=None, doubts=(few,)
        )
    means, resampled = measured.scores.mean(axis=1), measured.resampled(seed)
    factors = np.random.default_rng([seed, 1]).exponential(size=resampled.shape)
    # The first line is the fit itself, the others are its resamples.
    scores = np.concatenate([means[None], resampled])
    weights = 1 / _variances(measured) * np.concatenate([np.ones((1, len(rows))), factors])
    laws = fit_power_laws(rows, 1 - scores, weights)
    fitted = 1 - laws.error(rows)[0]
    backtest, missed = _backtest(rows, scores, weights)
    doubts = _doubts_of_the_data(measured, resampled) + _doubts_of_the_fit(fitted, measured.intervals())
    return Extrapolation(
        limit=float(laws.limit[0]),
        scale=float(laws.scale[0]),
        rate=float(laws.rate[0]),
        base=int(rows[-1]),
        fitted=tuple(fitted.tolist()),
        forecasts=tuple(_forecast(laws, scores[:, -1], rows[-1], factor) for factor in FACTORS),
        backtest=backtest,
        doubts=(*doubts, *missed),
    )


def fit_power_laws(rows: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> PowerLaws:
    """Weighted least squares with `limit >= 0`, `scale >= 0` and the rate from 0.01 to 3.

    For a given rate the fit is linear, so only the rate is searched for (variable projection, Golub & Pereyra
    1973): unlike in `scipy.optimize.curve_fit` there is no starting point and no local minimum, and one pass
    fits all resamples.

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

    The loss is quadratic in two numbers that may not be negative: its minimum, or where that is outside, the
    better of the minima on the two edges, which are never outside because errors are not negative.
    """
    powers = np.exp(-rates[:, :, None] * shares)  # [R, G, K]
    mean_power = np.einsum("rgk,rk->rg", powers, weights)
    mean_error = (errors * weights).sum(axis=1)[:, None]
    square = np.einsum("rgk,rgk,rk->rg", powers, powers, weights)
    product = np.einsum("rgk,rk->rg", powers, errors * weights)
    spread = square - mean_power**2
    scale = (product - mean_power * mean_error) / np.maximum(spread, 1e-300)
    zero, flat = np.zeros_like(product), np.broadcast_to(mean_error, product.shape)
    limits = np.stack([mean_error - scale * mean_power, zero, flat])
    scales = np.stack([scale, product / square, zero])
    losses = np.empty(limits.shape)
    for loss, a, b in zip(losses, limits, scales, strict=True):
        residuals = errors[:, None, :] - a[:, :, None] - b[:, :, None] * powers
        np.einsum("rgk,rgk,rk->rg", residuals, residuals, weights, out=loss)
    losses = np.where((limits >= 0) & (scales >= 0), losses, np.inf)
    which = np.argmin(losses, axis=0)[None]
    best = [np.take_along_axis(part, which, axis=0)[0] for part in (limits, scales, losses)]
    return best[0], best[1], best[2]


def _variances(measured: MeasuredScores) -> np.ndarray:
    """Of the mean scores, `[K]`; at least that of half a row, where all heads are right about all rows."""
    by_order, by_row = measured.standard_errors()
    return np.asarray(np.maximum(by_order**2 + by_row**2, (0.5 / measured.held_out) ** 2))


def _forecast(laws: PowerLaws, last: np.ndarray, rows: int, factor: int) -> Forecast:
    """The law's gain, added to the measured score with `rows` rows, up to a score of 1."""
    now, then = laws.error(np.array([rows, factor * rows])).T
    gain = np.minimum(now - then, 1 - last)
    score = last + gain
    (low, high), (gain_low, gain_high) = _around(score), _around(gain)
    return Forecast(
        factor=factor,
        rows=int(factor * rows),
        score=float(score[0]),
        low=low,
        high=high,
        gain=float(gain[0]),
        gain_low=gain_low,
        gain_high=gain_high,
    )


def _around(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the resamples, widened to include the value itself, which comes first."""
    low, high = _middle(values[1:])
    return float(min(low, values[0])), float(max(high, values[0]))


def _middle(values: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return low, high


def _backtest(rows: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[Backtest | None, list[str]]:
    """The largest size as the others predict it; a doubt where resamples do not explain the miss."""
    if len(rows) <= LEAST_POINTS:
        return None, []
    laws = fit_power_laws(rows[:-1], 1 - scores[:, :-1], weights[:, :-1])
    predicted = 1 - laws.error(rows[-1:])[:, 0]
    found = Backtest(int(rows[-1]), float(predicted[0]), *_around(predicted), measured=float(scores[0, -1]))
    low, high = _middle((predicted - scores[:, -1])[1:])
    if low <= 0 <= high:
        return found, []
    return found, [
        f"the smaller sizes alone predict {100 * found.score:.2f} at {rows[-1]:,} rows,"
        f" where {100 * found.measured:.2f} was measured"
    ]


def _doubts_of_the_data(measured: MeasuredScores, resampled: np.ndarray) -> list[str]:
    rows, doubts = measured.rows, []
    if measured.scores.shape[1] == 1:
        doubts.append(
            "one order of the rows: intervals leave out how much it matters which rows are labelled"
        )
    if rows[-1] < LEAST_SPAN * rows[0]:
        doubts.append(f"the sizes span no more than a factor of {rows[-1] / rows[0]:.2g}")
    if not _is_above(resampled[:, -1], resampled[:, 0]):
        doubts.append(
            "the score does not grow from the smallest to the largest size, or no more than by chance"
        )
        return doubts
    before = max(int(np.searchsorted(rows, rows[-1] / LAST_STRETCH, side="right")) - 1, 0)
    if not _is_above(resampled[:, -1], resampled[:, before]):
        doubts.append(
            f"from {rows[before]:,} to {rows[-1]:,} rows the score grew no more than by chance: a plateau"
        )
    return doubts


def _is_above(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(_middle(one - other)[0] > 0)


def _doubts_of_the_fit(fitted: np.ndarray, intervals: np.ndarray) -> list[str]:
    outside = int(((fitted < intervals[:, 0] - 1e-9) | (fitted > intervals[:, 1] + 1e-9)).sum())
    if not outside:
        return []
    return [f"the law fits badly: it is outside the interval of {outside} of {len(fitted)} sizes"]
