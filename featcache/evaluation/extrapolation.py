"""What more labelled rows would bring: a learning curve's power law, intervals, and reasons to doubt it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.evaluation.bootstrap import CONFIDENCE
from featcache.evaluation.power_law import LEAST_POINTS, PowerLaws, fit_power_laws

FACTORS = (2, 4, 10)
LEAST_SPAN = 8  # times the smallest size that the largest should have
LAST_STRETCH = 4  # over so many times the rows a curve that is to grow on should have grown


@dataclass(frozen=True)
class Measured:
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
        """Of the mean over the orders, `[K]`: from the orders (0 if there is but one), and from the rows."""
        orders: int = self.scores.shape[1]
        return self.deviations() / np.sqrt(orders), self.draws.mean(axis=1).std(axis=1)

    def deviations(self) -> np.ndarray:
        """Standard deviation over the orders, `[K]`; 0 of one order, and exactly 0 of equal scores."""
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

        One order fewer than there are is drawn, so that the variance of their mean comes out right (Rao & Wu
        1988, JASA 83: with as many as there are, it would be too small by 1 / S).
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
    """The score at the largest size, as the law of all smaller sizes foretells it, with what was measured."""

    rows: int
    score: float
    low: float
    high: float
    measured: float


@dataclass(frozen=True)
class Outlook:
    """The law `1 - score = limit + scale * (rows / base)^-rate` and what follows from it.

    Attributes:
        fitted: the law's score at each size that was measured.
        forecasts: one for each of `FACTORS`; none where there are too few sizes.
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


def foretell(found: Measured, seed: int = 0) -> Outlook:
    """Fit the law to the mean scores and read it beyond the largest size.

    Sizes weigh by one over the variance of their mean score. The 95 % intervals are percentiles over
    resamples of everything at once: of the rows scored on (the same ones for all sizes), of the orders, and
    of the sizes' weights (each times a draw of the exponential distribution: the Bayesian bootstrap, Rubin
    1981). Where the law holds they are rather too wide (in simulations they cover the truth in 98 to 100 % of
    curves); that it holds beyond the largest size, no data up to there can tell.
    """
    rows = found.rows
    if len(rows) < LEAST_POINTS:
        few = f"{len(rows)} sizes are too few for an extrapolation; {LEAST_POINTS} are needed"
        return Outlook(None, None, None, int(rows[-1]), (), (), None, (few,))
    means, resampled = found.scores.mean(axis=1), found.resampled(seed)
    weights = 1 / _variances(found)
    luck = np.random.default_rng([seed, 1]).exponential(size=resampled.shape)
    # The first line is the fit itself, the others its resamples.
    scores = np.concatenate([means[None], resampled])
    weights = weights * np.concatenate([np.ones((1, len(rows))), luck])
    laws = fit_power_laws(rows, 1 - scores, weights)
    forecasts = tuple(_forecast(laws, scores[:, -1], rows[-1], factor) for factor in FACTORS)
    fitted = 1 - laws.error(rows)[0]
    backtest, missed = _backtest(rows, scores, weights)
    doubts = [
        *_doubts_of_the_data(found, resampled),
        *_doubts_of_the_fit(fitted, found.intervals()),
        *missed,
    ]
    limit, scale, rate = (float(part[0]) for part in (laws.limit, laws.scale, laws.rate))
    fitted_scores = tuple(fitted.tolist())
    return Outlook(limit, scale, rate, int(rows[-1]), fitted_scores, forecasts, backtest, tuple(doubts))


def _variances(found: Measured) -> np.ndarray:
    """Of the mean scores, `[K]`; where all heads were right about all rows, half of one row is still open."""
    by_order, by_row = found.standard_errors()
    return np.asarray(np.maximum(by_order**2 + by_row**2, (0.5 / found.held_out) ** 2))


def _forecast(laws: PowerLaws, last: np.ndarray, rows: int, factor: int) -> Forecast:
    """Gains are the law's; they are added to what was measured with `rows` rows, up to a score of 1."""
    now, then = laws.error(np.array([rows, factor * rows])).T
    gain = np.minimum(now - then, 1 - last)
    score = last + gain
    return Forecast(
        factor, int(factor * rows), float(score[0]), *_around(score), float(gain[0]), *_around(gain)
    )


def _around(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the resamples, stretched to the value itself, which comes first."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return float(min(low, values[0])), float(max(high, values[0]))


def _backtest(rows: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[Backtest | None, list[str]]:
    """The largest size as the others foretell it; a doubt where the miss is more than resamples explain."""
    if len(rows) <= LEAST_POINTS:
        return None, []
    laws = fit_power_laws(rows[:-1], 1 - scores[:, :-1], weights[:, :-1])
    told = 1 - laws.error(rows[-1:])[:, 0]
    found = Backtest(int(rows[-1]), float(told[0]), *_around(told), float(scores[0, -1]))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile((told - scores[:, -1])[1:], [tail, 100 - tail])
    if low <= 0 <= high:
        return found, []
    return found, [
        f"the smaller sizes alone foretell {100 * found.score:.2f} at {rows[-1]:,} rows,"
        f" where {100 * found.measured:.2f} was measured"
    ]


def _doubts_of_the_data(found: Measured, resampled: np.ndarray) -> list[str]:
    rows, doubts = found.rows, []
    if found.scores.shape[1] == 1:
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
    return bool(np.percentile(one - other, 50 * (1 - CONFIDENCE)) > 0)


def _doubts_of_the_fit(fitted: np.ndarray, intervals: np.ndarray) -> list[str]:
    outside = int(((fitted < intervals[:, 0] - 1e-9) | (fitted > intervals[:, 1] + 1e-9)).sum())
    if not outside:
        return []
    return [f"the law fits badly: it is outside the interval of {outside} of {len(fitted)} sizes"]
