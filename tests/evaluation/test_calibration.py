"""Temperature, thresholds and calibration error against scipy, scikit-learn and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.metrics import f1_score

from featcache.errors import HeadError, UsageError
from featcache.evaluation.calibration import fit_temperature, tune_thresholds
from featcache.evaluation.metrics import multi_hot, score
from tests.support.calibration_error import expected_calibration_error

Data = tuple[np.ndarray, np.ndarray]


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """By scipy."""
    scaled = np.asarray(logits, np.float64) / temperature
    if labels.ndim == 2:
        return float(-log_expit(np.where(labels, scaled, -scaled)).mean())
    return float(-log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())


def calibrated(rows: int, classes: int = 4, seed: int = 0, multi_label: bool = False) -> Data:
    """Logits whose softmax (sigmoid) is the very distribution the labels are drawn from."""
    draw = np.random.default_rng(seed)
    logits = 1.5 * draw.normal(size=(rows, classes))
    if multi_label:
        return logits, (draw.random(logits.shape) < expit(logits)).astype(np.uint8)
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    return logits, (cumulative[:, :-1] < draw.random((rows, 1))).sum(axis=1)


def probabilities_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(expit(logits) if labels.ndim == 2 else softmax(logits, axis=1))


@st.composite
def outputs(draw: st.DrawFn, limit: float = 30.0) -> Data:
    """Logits with ties and zeros among them, and labels of either task."""
    rows, classes = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    values = st.floats(-limit, limit) | st.sampled_from([0.0, 1.0, -1.0, limit])
    logits = draw(arrays.arrays(np.float64, (rows, classes), elements=values))
    if draw(st.booleans()):
        return logits, draw(arrays.arrays(np.uint8, (rows, classes), elements=st.integers(0, 1)))
    return logits, draw(arrays.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))


# ---------------------------------------------------------------- calibration error


@pytest.mark.parametrize("multi_label", [False, True])
def test_calibration_error_grows_with_sharpening(multi_label: bool) -> None:
    logits, labels = calibrated(20_000, multi_label=multi_label)
    errors = [
        expected_calibration_error(probabilities_of(factor * logits, labels), labels) for factor in (1, 2, 4)
    ]
    assert errors[0] < 0.02 and errors[0] + 0.05 < errors[1] and errors[1] + 0.02 < errors[2]


@given(outputs(), st.integers(1, 40))
def test_calibration_error_is_in_0_to_1(data: Data, bins: int) -> None:
    logits, labels = data
    probabilities = probabilities_of(logits, labels)
    error = expected_calibration_error(probabilities, labels, bins)
    assert 0 <= error <= 1 + 1e-12
    names = tuple("abcd"[: probabilities.shape[1]])
    assert score(probabilities, labels, names).ece == pytest.approx(
        expected_calibration_error(probabilities, labels), abs=1e-12
    )


def test_calibration_error_by_hand() -> None:
    """Two bins of three are used: 0.9, 0.9 (one right), and 0.6 (right)."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    error = expected_calibration_error(probabilities, np.array([0, 1, 1]), bins=3)
    assert error == pytest.approx(2 / 3 * abs(0.5 - 0.9) + 1 / 3 * abs(1 - 0.6))
    one_bin = expected_calibration_error(probabilities, np.array([0, 1, 1]), bins=1)
    assert one_bin == pytest.approx(abs(2 / 3 - 0.8))
    every = expected_calibration_error(np.array([[0.9, 0.1]]), np.array([[1, 0]]))  # two entries
    assert every == pytest.approx(0.1)


def test_score_has_no_calibration_error_of_wrong_input() -> None:
    assert np.isnan(score(np.zeros((0, 2)), np.zeros(0, np.int64), ("a", "b")).ece)
    with pytest.raises(UsageError, match="do not fit"):
        score(np.ones((2, 2)), np.zeros(3, np.int64), ("a", "b"))
    with pytest.raises(HeadError, match=r"outside 0\.\.1"):
        score(np.full((2, 2), 3.0), np.zeros(2, np.int64), ("a", "b"))


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("factor", [0.2, 0.5, 1.0, 3.0, 10.0])
def test_fit_temperature_finds_the_factor_of_sharpened_logits(factor: float, multi_label: bool) -> None:
    logits, labels = calibrated(4000, multi_label=multi_label)
    sharp = (factor * logits).astype(np.float32)
    found = fit_temperature(sharp, labels)
    assert found == pytest.approx(factor, rel=0.1)
    before, after = (probabilities_of(sharp / t, labels) for t in (1, found))
    if multi_label:  # no argmax: sigmoids saturate, several of a row are 1.0
        np.testing.assert_array_equal(multi_hot(before), multi_hot(after))
    else:
        np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    losses = [score(part, labels, tuple("abcd")).log_loss for part in (before, after)]
    assert losses[1] <= losses[0]
    if factor != 1:
        errors = [expected_calibration_error(part, labels) for part in (before, after)]
        assert errors[1] < 0.03 < errors[0]


@given(outputs(), st.floats(0.05, 20))
@example((np.array([[3.0, 0.0], [0.0, 2.0]]), np.array([0, 1])), 1.0)
def test_no_temperature_is_better_than_the_fitted_one(data: Data, other: float) -> None:
    logits, labels = data
    found = fit_temperature(logits, labels)
    assert 0.05 <= found <= 20
    lowest = nll(logits, labels, found)
    assert lowest <= nll(logits, labels)
    assert lowest <= nll(logits, labels, other) + 1e-9


@pytest.mark.parametrize("multi_label", [False, True])
def test_fit_temperature_equals_the_minimum_by_scipy(multi_label: bool) -> None:
    for seed in range(20):
        logits, labels = calibrated(80, seed=seed, multi_label=multi_label)
        wanted = minimize_scalar(
            lambda log_t, data=(2.5 * logits, labels): nll(*data, np.exp(log_t)),
            bounds=np.log([0.05, 20]),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert fit_temperature(2.5 * logits, labels) == pytest.approx(np.exp(wanted.x), rel=1e-4)


@given(outputs(), st.floats(0.05, 20), st.floats(-100, 100))
def test_temperature_does_not_change_predictions(data: Data, temperature: float, shift: float) -> None:
    """On a grid, where distinct logits stay distinct; and softmax does not see a shift of a row."""
    logits, labels = np.round(data[0] * 4), data[1]
    before, after = logits, logits / temperature
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    np.testing.assert_array_equal(multi_hot(expit(before)), multi_hot(expit(after)))
    if labels.ndim == 1:
        shifted = fit_temperature(logits + np.round(shift), labels)
        assert shifted == pytest.approx(fit_temperature(logits, labels), rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64)),
        (np.zeros((0, 3)), np.zeros((0, 3), np.uint8)),
        (np.full((4, 3), 7.0), np.array([0, 1, 2, 2])),
        (np.zeros((4, 3)), np.eye(4, 3, dtype=np.uint8)),
        (np.full((4, 1), 7.0), np.zeros(4, np.int64)),  # one class: always certain
        (np.array([[1e5, 0.0]]), np.array([0])),  # as good as it gets at any T
    ],
)
@pytest.mark.filterwarnings("error")
def test_fit_temperature_returns_1_where_nothing_can_be_learnt(
    logits: np.ndarray, labels: np.ndarray
) -> None:
    assert fit_temperature(logits, labels) == 1.0


def test_fit_temperature_returns_the_ends_of_its_range() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.05)  # all right: never too sure
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(20)  # all wrong: never too unsure
    assert fit_temperature(logits, np.eye(2, dtype=np.uint8)[::-1].copy()) == pytest.approx(20)


def test_fit_temperature_ignores_a_class_without_train_rows() -> None:
    """Its logit is some -10,000: at no temperature does its probability become one."""
    logits, labels = calibrated(3000)
    logits, labels = np.column_stack([2 * logits, np.full(3000, -1e4)]), labels.copy()
    alone = fit_temperature(logits, labels)
    labels[:20] = 4
    assert fit_temperature(logits, labels) == pytest.approx(alone, rel=0.03) == pytest.approx(2, rel=0.1)
    assert fit_temperature(logits[:20], labels[:20]) == 1.0  # only such rows


def test_fit_temperature_of_huge_logits_does_not_overflow() -> None:
    logits, labels = calibrated(2000)
    with np.errstate(all="raise", under="ignore"):
        assert fit_temperature(15 * logits + 1e6, labels) == pytest.approx(15, rel=0.1)


def test_fit_temperature_refuses_wrong_input() -> None:
    with pytest.raises(HeadError, match="NaN or infinite"):
        fit_temperature(np.array([[0.0, -np.inf]]), np.array([0]))
    with pytest.raises(UsageError, match="do not fit"):
        fit_temperature(np.zeros((2, 3)), np.zeros((2, 4), np.uint8))
    with pytest.raises(UsageError, match=r"0\.\.2"):
        fit_temperature(np.zeros((2, 3)), np.array([0, 3]))


# ---------------------------------------------------------------- thresholds


@st.composite
def label_sets(draw: st.DrawFn) -> Data:
    """Probabilities with many ties, 0 and 1 among them."""
    shape = (draw(st.integers(1, 15)), draw(st.integers(1, 3)))
    values = st.integers(0, 10).map(lambda tenths: tenths / 10) | st.floats(0, 1)
    probabilities = draw(arrays.arrays(np.float64, shape, elements=values))
    return probabilities, draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 1)))


@given(label_sets())
def test_tune_thresholds_finds_the_best_of_all_candidates(data: Data) -> None:
    """Each probability, and the default, as the threshold: none is better by scikit-learn's F1."""
    probabilities, labels = data
    found = tune_thresholds(probabilities, labels)
    assert found.shape == labels.shape[1:] and found.dtype == np.float64
    assert ((found >= 0) & (found <= 1)).all()
    for number, limit in enumerate(found):
        column, truth = probabilities[:, number], labels[:, number]
        if not truth.any():
            assert limit == 0.5
            continue
        scores = {other: f1_score(truth, column >= other, zero_division=0) for other in [0.5, limit, *column]}
        assert scores[limit] == pytest.approx(max(scores.values()))
        values = np.unique(np.append(column, 0.0))
        if limit not in column:  # between two neighbours there is one candidate: the middle
            place = np.searchsorted(values, limit)
            assert limit == (values[place - 1] + values[place]) / 2
        nearest = [
            middle
            for middle in (values[1:] + values[:-1]) / 2
            if middle not in values and f1_score(truth, column >= middle, zero_division=0) == scores[limit]
        ]
        assert all(abs(limit - 0.5) <= abs(middle - 0.5) for middle in nearest)


def test_thresholds_by_hand() -> None:
    probabilities = np.array(
        [
            # apart, all positive, none, 0.7 and 0.15 as good, one value
            [0.9, 0.9, 0.9, 0.80, 0.3],
            [0.8, 0.4, 0.8, 0.60, 0.3],
            [0.2, 0.3, 0.2, 0.50, 0.3],
            [0.1, 0.2, 0.1, 0.30, 0.3],
        ]
    )
    labels = np.array([[1, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 1, 0]])
    found = tune_thresholds(probabilities, labels)
    assert found == pytest.approx([0.5, 0.1, 0.5, 0.7, 0.15])
    assert multi_hot(probabilities, found)[:, 1].all() and multi_hot(probabilities, found)[:, 4].all()


def test_tune_thresholds_takes_the_one_nearest_to_a_half_of_equals() -> None:
    """F1 is 2/3 with the first row alone, and with the first four: 0.85 or 0.4 (of 0.45 and 0.35)."""
    probabilities = np.array([[0.9], [0.8], [0.7], [0.45], [0.35]])
    labels = np.array([[1], [0], [0], [1], [0]])
    assert f1_score(labels, probabilities >= 0.85) == f1_score(labels, probabilities >= 0.4)
    assert tune_thresholds(probabilities, labels) == pytest.approx([0.4])
    mirrored = np.array([[0.97], [0.77], [0.75], [0.65], [0.01]])  # 0.87 or 0.33
    assert tune_thresholds(mirrored, labels) == pytest.approx([0.33])
    low = np.array([[0.6], [0.5], [0.3], [0.2], [0.1]])  # 0.55 or 0.15
    assert tune_thresholds(low, labels) == pytest.approx([0.55])


def test_tuned_thresholds_separate_neighbouring_floats() -> None:
    low = 0.3
    high = np.nextafter(low, 1)
    found = tune_thresholds(np.array([[low], [high]]), np.array([[0], [1]]))
    assert multi_hot(np.array([[low], [high]]), found).tolist() == [[0], [1]]


def test_tuning_helps_where_probabilities_are_too_low() -> None:
    logits, labels = calibrated(3000, multi_label=True)
    probabilities = expit(logits - 3).astype(np.float32)
    found = tune_thresholds(probabilities, labels)
    plain, tuned = (score(probabilities, labels, tuple("abcd"), limits) for limits in (None, found))
    assert tuned.macro_f1 > plain.macro_f1 + 0.2 and (found < 0.3).all()


def test_tune_thresholds_refuses_wrong_input() -> None:
    assert tune_thresholds(np.zeros((0, 3)), np.zeros((0, 3), np.uint8)).tolist() == [0.5] * 3
    with pytest.raises(UsageError, match="single-label"):
        tune_thresholds(np.ones((2, 3)), np.zeros(2, np.int64))
    with pytest.raises(HeadError, match="NaN"):
        tune_thresholds(np.full((2, 3), np.nan), np.zeros((2, 3), np.uint8))
