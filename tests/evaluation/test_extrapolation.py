"""Extrapolation of learning curves: intervals of the scores, the power law, forecasts and doubts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from featcache.evaluation.extrapolation import MeasuredScores, extrapolate, fit_power_laws

# ---------------------------------------------------------------- intervals


def simulated(
    rows: np.ndarray, errors: np.ndarray, *, orders: int, held_out: int, seed: int, spread: float = 0.3
) -> MeasuredScores:
    """Heads whose mistakes depend on size, order and row; `errors` `[K]` are their probabilities.

    Rows differ in difficulty (`spread`), so that all heads fail on the same ones; so do orders, the less the
    larger the size.
    """
    from scipy.stats import norm

    draw = np.random.default_rng(seed)
    hardness = spread * draw.normal(size=held_out)
    luck = (0.1 * (rows[0] / rows) ** 0.5)[:, None] * draw.normal(size=(len(rows), orders))
    total = np.sqrt(1 + spread**2 + 0.01 * rows[0] / rows)[:, None]
    level = norm.ppf(errors)[:, None] * total  # so that the mean over all draws is `errors`
    noise = draw.normal(size=(len(rows), orders, held_out))
    right = (noise > level[:, :, None] + luck[:, :, None] + hardness).astype(np.float64)
    weights = draw.multinomial(held_out, [1 / held_out] * held_out, 300) / held_out
    return MeasuredScores(rows, right.mean(axis=2), right @ weights.T, held_out)


@pytest.mark.parametrize("orders", [2, 5])
def test_measured_intervals_cover_the_truth(orders: int) -> None:
    rows, errors = np.array([10, 100, 1000]), np.array([0.4, 0.25, 0.15])
    inside = np.zeros(3)
    for seed in range(150):
        found = simulated(rows, errors, orders=orders, held_out=300, seed=seed).intervals()
        inside += (found[:, 0] <= 1 - errors) & (1 - errors <= found[:, 1])
    assert (inside >= 0.90 * 150).all(), inside


def test_the_interval_adds_the_variances_of_orders_and_rows() -> None:
    """Of a single order it is that of the rows; of orders that differ it is wider than of either."""
    rows = np.array([10, 100])
    found = simulated(rows, np.array([0.4, 0.2]), orders=5, held_out=400, seed=1)
    by_order, by_row = found.standard_errors()
    np.testing.assert_allclose(by_order, found.scores.std(axis=1, ddof=1) / np.sqrt(5))
    half = np.diff(found.intervals(), axis=1)[:, 0] / 2
    assert (half > 1.9 * np.sqrt(by_order**2 + by_row**2)).all()
    alone = MeasuredScores(rows, found.scores[:, :1], found.draws[:, :1], 400)
    share = alone.scores[:, 0]
    np.testing.assert_allclose(alone.standard_errors()[1], np.sqrt(share * (1 - share) / 400), rtol=0.1)
    ends = np.percentile(alone.draws[:, 0], [2.5, 97.5], axis=1).T
    np.testing.assert_allclose(alone.intervals(), ends, atol=0.012)


def test_interval_of_scores_of_1_ends_at_1() -> None:
    found = MeasuredScores(np.array([10, 20]), np.ones((2, 3)), np.ones((2, 3, 50)), 100)
    np.testing.assert_array_equal(found.intervals(), np.ones((2, 2)))
    np.testing.assert_array_equal(found.deviations(), 0)


def test_resampled_has_the_variance_of_the_mean_over_orders() -> None:
    scores = np.random.default_rng(0).normal(0.8, 0.05, size=(2, 5))
    found = MeasuredScores(np.array([10, 20]), scores, np.repeat(scores[:, :, None], 20_000, axis=2), 10**6)
    expected = scores.std(axis=1, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.resampled(0).std(axis=0), expected, rtol=0.03)


# ---------------------------------------------------------------- the law


ROWS = np.array([10, 30, 100, 300, 1000, 3000, 9600])


@given(st.floats(0, 0.4), st.floats(0.01, 2.0), st.floats(0.05, 1.5))
def test_fit_power_laws_finds_the_law_of_exact_errors(limit: float, scale: float, rate: float) -> None:
    errors = limit + scale * (ROWS / 10) ** -rate
    laws = fit_power_laws(ROWS, errors[None], np.ones(len(ROWS)))
    np.testing.assert_allclose(laws.error(ROWS)[0], errors, atol=1e-5)
    np.testing.assert_allclose(laws.error(ROWS * 10)[0], limit + scale * ROWS**-rate, atol=2e-3)


def test_fit_power_laws_fits_as_well_as_scipy() -> None:
    draw = np.random.default_rng(0)
    errors = 0.05 + 0.8 * ROWS**-0.4 + draw.normal(size=(30, 7)) * 0.02 * (ROWS / 10) ** -0.3
    weights = (ROWS / 10) ** 0.6
    laws = fit_power_laws(ROWS, errors, weights)
    assert (laws.limit >= 0).all() and (laws.scale >= 0).all()

    def law(rows: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return np.asarray(a + b * (rows / 9600) ** -c)

    for found, wanted in zip(laws.error(ROWS), errors, strict=True):
        best, _ = curve_fit(
            law, ROWS, wanted, (0.05, 0.02, 0.4), weights**-0.5, bounds=([0, 0, 0.01], [1, 5, 3])
        )
        theirs = (weights * (law(ROWS, *best) - wanted) ** 2).sum()
        assert (weights * (found - wanted) ** 2).sum() <= theirs * (1 + 1e-5)


def test_fit_power_laws_of_rising_errors_is_flat() -> None:
    laws = fit_power_laws(ROWS, np.linspace(0.1, 0.3, 7)[None], np.ones(7))
    assert laws.scale[0] == 0 and laws.limit[0] == pytest.approx(0.2)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 8)])
def test_fit_power_laws_refuses_too_few_points(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needed"):
        fit_power_laws(ROWS[:7] if shape[-1] == 8 else ROWS[:3], np.full(shape, 0.1), np.ones(shape[-1]))


# ---------------------------------------------------------------- extrapolate


def lawful(rows: np.ndarray) -> np.ndarray:
    return np.asarray(0.06 + 0.8 * np.asarray(rows, float) ** -0.4)


def test_forecasts_cover_the_truth() -> None:
    """The gain of twice and ten times the rows, and the score there, where the law holds."""
    runs, inside, doubted = 20, np.zeros(4), 0
    for seed in range(runs):
        told = extrapolate(simulated(ROWS, lawful(ROWS), orders=5, held_out=1000, seed=seed))
        doubted += bool(told.doubts)
        for place, one in enumerate((told.forecasts[0], told.forecasts[2])):
            truth = 1 - lawful(np.array([one.rows]))[0]
            gain = truth - (1 - lawful(ROWS[-1:])[0])
            inside[place] += one.gain_low <= gain <= one.gain_high
            inside[2 + place] += one.low <= truth <= one.high
    assert (inside >= 0.9 * runs).all(), inside
    assert doubted <= runs / 4


def test_extrapolate_reads_the_law_beyond_the_last_size() -> None:
    found = simulated(ROWS, lawful(ROWS), orders=5, held_out=4000, seed=3)
    told = extrapolate(found)
    assert [one.factor for one in told.forecasts] == [2, 4, 10]
    assert [one.rows for one in told.forecasts] == [19200, 38400, 96000]
    at = told.score_at(np.array([9600, 19200, 38400, 96000]))
    for one, there in zip(told.forecasts, at[1:], strict=True):
        assert one.gain == pytest.approx(there - at[0])
        assert one.score == pytest.approx(found.scores[-1].mean() + one.gain)
        assert one.gain_low <= one.gain <= one.gain_high and one.low <= one.score <= one.high
    np.testing.assert_allclose(told.fitted, told.score_at(ROWS))
    np.testing.assert_allclose(1 - np.array(told.fitted), lawful(ROWS), atol=0.02)
    assert told.backtest and told.backtest.rows == 9600
    assert told.backtest.low <= told.backtest.measured <= told.backtest.high
    assert told.doubts == ()
    assert extrapolate(found) == told  # the same numbers every time


def outlook_of(scores: list[float], rows: np.ndarray | None = None, orders: int = 5) -> Any:
    """Of heads that differ little, on 10,000 rows."""
    sizes = ROWS[: len(scores)] if rows is None else rows
    errors = 1 - np.array(scores)
    return extrapolate(simulated(sizes, errors, orders=orders, held_out=10_000, seed=5, spread=0.0))


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.9, 0.88, 0.86, 0.84, 0.82, 0.8, 0.78], "does not grow"),
        ([0.8] * 7, "does not grow"),
        ([0.6, 0.75, 0.85, 0.88, 0.88, 0.88, 0.88], "plateau"),
        ([0.6, 0.75, 0.8, 0.82, 0.83, 0.835, 0.93], "the smaller sizes alone predict"),
        ([0.5, 0.55, 0.65, 0.9, 0.92, 0.92, 0.93], "fits badly"),
    ],
)
def test_extrapolate_doubts_unreliable_curves(scores: list[float], words: str) -> None:
    told = outlook_of(scores)
    assert any(words in doubt for doubt in told.doubts), told.doubts
    assert len(told.forecasts) == 3


def test_extrapolate_doubts_few_sizes_one_order_and_a_narrow_span() -> None:
    told = outlook_of([0.6, 0.7, 0.8])
    assert told.forecasts == () and told.limit is None and told.backtest is None
    assert "too few" in told.doubts[0] and np.isnan(told.score_at(ROWS)).all()
    assert any("one order" in doubt for doubt in outlook_of((1 - lawful(ROWS)).tolist(), orders=1).doubts)
    narrow = np.array([100, 150, 200, 300, 400])
    doubts = outlook_of((1 - lawful(narrow)).tolist(), narrow).doubts
    assert any("factor of 4" in doubt for doubt in doubts)
    assert outlook_of((1 - lawful(ROWS[:4])).tolist()).backtest is None


def test_extrapolate_of_perfect_heads_has_no_gain() -> None:
    found = MeasuredScores(ROWS, np.ones((7, 3)), np.ones((7, 3, 50)), 100)
    told = extrapolate(found)
    assert all((one.score, one.gain, one.gain_high) == (1, 0, 0) for one in told.forecasts)
    assert any("does not grow" in doubt for doubt in told.doubts)
    assert all(np.isfinite(part).all() for part in map(list, [told.fitted, dataclasses.astuple(told)[:4]]))
