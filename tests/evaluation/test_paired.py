"""Paired statistics against enumeration, scipy, scikit-learn and simulation."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

from featcache.evaluation.paired import Bootstrap, _draw, holm, mcnemar, paired_bootstrap, right_rows


def rows(only_first: int, only_second: int, both: int = 5, neither: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Which rows two classifiers get right, with these numbers of each kind."""
    pairs = (
        [(True, False)] * only_first
        + [(False, True)] * only_second
        + [(True, True)] * both
        + [(False, False)] * neither
    )
    table = np.array(pairs, bool).reshape(-1, 2)
    return table[:, 0], table[:, 1]


# --- McNemar ------------------------------------------------------------------------------------


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_the_binomial_test(first: int, second: int) -> None:
    found = mcnemar(*rows(first, second))
    assert (found.only_first, found.only_second) == (first, second)
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("disagreed", range(1, 11))
def test_mcnemar_equals_the_count_of_all_outcomes(disagreed: int) -> None:
    heads = Counter(map(sum, itertools.product((0, 1), repeat=disagreed)))
    for first in range(disagreed + 1):
        far = abs(first - disagreed / 2)
        ways = sum(number for count, number in heads.items() if abs(count - disagreed / 2) >= far)
        assert mcnemar(*rows(first, disagreed - first)).p == pytest.approx(ways / 2**disagreed)


def test_right_rows_of_multi_label_rows_are_right_as_a_whole() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], np.uint8)
    predicted = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0]], np.uint8)
    assert right_rows(labels, predicted).tolist() == [True, False, False]
    assert right_rows(np.array([1, 0, 2]), np.array([1, 1, 2])).tolist() == [True, False, True]


# --- bootstrap ----------------------------------------------------------------------------------


def made_up(
    seed: int, count: int, classes: int, *, multi: bool = False, wrong: tuple[float, float] = (0.2, 0.3)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two predictions that get some rows (multi-label: entries) wrong."""
    draw = np.random.default_rng(seed)
    shape = (count, classes) if multi else (count,)
    high = 2 if multi else classes
    labels = draw.integers(0, high, shape)
    guesses = [np.where(draw.random(shape) < part, draw.integers(0, high, shape), labels) for part in wrong]
    return labels, guesses[0], guesses[1]


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(labels, predicted, average="macro", zero_division=0))


@pytest.mark.parametrize("multi", [False, True])
def test_paired_bootstrap_scores_equal_scikit_learn(multi: bool) -> None:
    labels, first, second = made_up(0, 90, 5, multi=multi)
    found = paired_bootstrap(labels, first, second, 5, resamples=20)
    for number, predicted in (("first", first), ("second", second)):
        assert getattr(found.accuracy, number) == pytest.approx(accuracy_score(labels, predicted))
        assert getattr(found.macro_f1, number) == pytest.approx(macro_f1(labels, predicted))
    assert found.macro_f1.value == pytest.approx(macro_f1(labels, second) - macro_f1(labels, first))


@pytest.mark.parametrize("multi", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_paired_bootstrap_interval_equals_that_of_resampled_rows(multi: bool) -> None:
    """The textbook way: draw rows, score both with scikit-learn, take the difference."""
    labels, first, second = made_up(1, 120, 3, multi=multi)
    draw, drawn = np.random.default_rng(5), []
    for _ in range(600):
        picked = draw.integers(0, 120, 120)
        drawn.append(macro_f1(labels[picked], second[picked]) - macro_f1(labels[picked], first[picked]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    found = paired_bootstrap(labels, first, second, 3, resamples=4000).macro_f1
    error = 0.15 * (high - low)  # of either set of resamples
    assert found.low == pytest.approx(low, abs=error) and found.high == pytest.approx(high, abs=error)
    value = macro_f1(labels, second) - macro_f1(labels, first)
    beyond = np.mean(np.abs(np.array(drawn) - value) >= abs(value))
    assert found.p == pytest.approx(beyond, abs=0.05)


def test_paired_bootstrap_equals_the_count_of_all_resamples() -> None:
    labels, first, second = (
        np.array([0, 0, 1, 1, 2, 2]),
        np.array([0, 0, 1, 2, 2, 2]),
        np.array([0, 1, 0, 1, 2, 0]),
    )
    count = len(labels)
    chances: Counter[float] = Counter()
    for picked in itertools.combinations_with_replacement(range(count), count):
        times = Counter(picked).values()
        ways = math.factorial(count) // math.prod(map(math.factorial, times))
        index = list(picked)
        value = macro_f1(labels[index], second[index]) - macro_f1(labels[index], first[index])
        chances[round(value, 9)] += ways / count**count
    assert sum(chances.values()) == pytest.approx(1)
    observed = macro_f1(labels, second) - macro_f1(labels, first)
    p = sum(chance for value, chance in chances.items() if abs(value - observed) >= abs(observed) - 1e-8)
    found = paired_bootstrap(labels, first, second, 3, resamples=20_000).macro_f1
    assert 0.1 < p < 0.9 and found.p == pytest.approx(p, abs=0.015)
    below = sum(chance for value, chance in chances.items() if value < found.low - 1e-8)
    above = sum(chance for value, chance in chances.items() if value > found.high + 1e-8)
    assert below <= 0.03 and above <= 0.03
    assert below + chances[round(found.low, 9)] >= 0.02 and above + chances[round(found.high, 9)] >= 0.02


@given(st.integers(0, 1000), st.booleans(), st.sampled_from([40, 900]))
@settings(max_examples=30)
def test_paired_bootstrap_does_not_depend_on_order_or_batches(seed: int, multi: bool, count: int) -> None:
    data = made_up(seed, count, 3, multi=multi)
    found = paired_bootstrap(*data, 3, resamples=50, seed=seed)
    order = np.random.default_rng(seed).permutation(count)
    assert paired_bootstrap(*(part[order] for part in data), 3, resamples=50, seed=seed) == found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featcache.evaluation.paired._VALUES_AT_ONCE", 7 * count)
        assert paired_bootstrap(*data, 3, resamples=50, seed=seed) == found


def test_resamples_are_draws_of_rows_with_replacement() -> None:
    """Mean and covariance of such draws, and no row too many."""
    counts = np.array([1, 3, 6, 30])
    drawn = np.concatenate(list(_draw(counts, 40_000, 0, 50)))
    assert drawn.shape == (40_000, 4) and (drawn.sum(axis=1) == 40).all()
    assert drawn.mean(axis=0) == pytest.approx(counts, rel=0.03)
    share = counts / 40
    assert np.cov(drawn.T) == pytest.approx(40 * (np.diag(share) - np.outer(share, share)), abs=0.15)


def test_paired_bootstrap_depends_on_its_seed() -> None:
    data = made_up(3, 60, 3)
    one, two, other = (paired_bootstrap(*data, 3, resamples=200, seed=seed) for seed in (0, 0, 1))
    assert one == two != other


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=20)
def test_swapping_the_two_negates_the_difference(seed: int, multi: bool) -> None:
    labels, first, second = made_up(seed, 80, 3, multi=multi)
    here = paired_bootstrap(labels, first, second, 3, resamples=1000)
    there = paired_bootstrap(labels, second, first, 3, resamples=1000)
    for one, other in ((here.accuracy, there.accuracy), (here.macro_f1, there.macro_f1)):
        assert (one.first, one.second, one.value) == (other.second, other.first, -other.value)
        width = one.high - one.low
        assert one.low == pytest.approx(-other.high, abs=0.25 * width + 1e-9)
        assert one.p == pytest.approx(other.p, abs=0.08)


@pytest.mark.parametrize("multi", [False, True])
def test_equal_predictions_have_no_difference(multi: bool) -> None:
    labels, first, _ = made_up(2, 50, 4, multi=multi)
    found = paired_bootstrap(labels, first, first, 4, resamples=100)
    for difference in (found.accuracy, found.macro_f1):
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("disagreed", [1, 2, 3, 4, 5])
def test_few_rows_have_large_p_values(disagreed: int) -> None:
    """All resamples may agree, but five fair coins often fall alike."""
    labels = np.arange(100) % 2
    second = labels.copy()
    second[:disagreed] = 1 - second[:disagreed]
    found = paired_bootstrap(labels, labels, second, 2)
    assert min(found.accuracy.p, found.macro_f1.p) >= mcnemar(labels == labels, labels == second).p > 0.05
    every = np.arange(disagreed) % 2  # no row on which they agree: the resamples do not differ
    found = paired_bootstrap(every, every, 1 - every, 2)
    assert found.accuracy.value == -1 and found.accuracy.p >= 2.0 ** (1 - disagreed)


def test_small_p_value_equals_that_of_many_more_resamples() -> None:
    labels = np.arange(1000) % 2
    first, second = labels.copy(), labels.copy()
    first[:12], second[12:48] = 1 - first[:12], 1 - second[12:48]
    few = paired_bootstrap(labels, first, second, 2, resamples=2000)
    many = paired_bootstrap(labels, first, second, 2, resamples=400_000)
    exact = mcnemar(labels == first, labels == second).p
    for metric in ("accuracy", "macro_f1"):
        assert exact / 4 < getattr(many, metric).p < 4 * exact
        assert getattr(many, metric).p / 3 < getattr(few, metric).p < 3 * getattr(many, metric).p
    assert many.resamples * many.macro_f1.p > 10  # counted, not from the normal distribution


def test_paired_bootstrap_refuses_no_rows_or_resamples() -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="0 rows"):
        paired_bootstrap(none, none, none, 2)
    with pytest.raises(ValueError, match="1 resamples"):
        paired_bootstrap(none + 1, none + 1, none + 1, 2, resamples=1)


# --- error rates --------------------------------------------------------------------------------


def rejected(trials: int, better: float, *, multi: bool = False) -> dict[str, float]:
    """Shares of p-values below 0.05, where two classifiers differ by chance and in `better` rows more."""
    counts = {"mcnemar": 0, "accuracy": 0, "macro_f1": 0}
    for seed in range(trials):
        labels, first, second = made_up(seed, 200, 3, multi=multi, wrong=(0.2, 0.2))
        draw = np.random.default_rng(seed + 10_000)
        second = np.where(draw.random(second.shape) < better, labels, second)
        found: Bootstrap = paired_bootstrap(labels, first, second, 3, resamples=400, seed=seed)
        counts["mcnemar"] += mcnemar(right_rows(labels, first), right_rows(labels, second)).p < 0.05
        counts["accuracy"] += found.accuracy.p < 0.05
        counts["macro_f1"] += found.macro_f1.p < 0.05
    return {name: count / trials for name, count in counts.items()}


@pytest.mark.parametrize("multi", [False, True])
def test_equal_classifiers_differ_in_five_percent_at_most(multi: bool) -> None:
    found = rejected(600, 0.0, multi=multi)
    noise = 2.6 * math.sqrt(0.05 * 0.95 / 600)  # 99.5 % of all such simulations stay below
    assert max(found.values()) <= 0.05 + noise, found
    assert found["macro_f1"] >= 0.02, found  # and it is no test that never says anything


def test_real_difference_is_found() -> None:
    assert min(rejected(60, 0.9).values()) >= 0.9


# --- many comparisons ---------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0]), max_size=6))
def test_holm_equals_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """By its definition: p is corrected by the worst of all sets of hypotheses it belongs to."""
    number = len(p_values)
    sets = [chosen for size in range(1, number + 1) for chosen in itertools.combinations(range(number), size)]
    expected = [
        max(min(1.0, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets if place in chosen)
        for place in range(number)
    ]
    assert holm(p_values).tolist() == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).tolist() == [] and holm([0.2]).tolist() == [0.2]
