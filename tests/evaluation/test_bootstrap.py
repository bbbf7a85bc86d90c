"""Bootstrap intervals against a plain loop with scikit-learn, and against the truth they must cover."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as reference

from featcache.errors import HeadError, UsageError
from featcache.evaluation import bootstrap as intervals
from featcache.evaluation.bootstrap import bootstrap_intervals, bootstrap_metrics
from featcache.evaluation.metrics import METRICS, score
from tests.support.calibration_error import expected_calibration_error

Data = tuple[np.ndarray, np.ndarray]


def single_label(rows: int, classes: int = 3, seed: int = 0) -> Data:
    draw = np.random.default_rng(seed)
    probabilities = draw.dirichlet(np.linspace(1.5, 0.3, classes), rows)
    guess = (probabilities.cumsum(axis=1) < draw.random((rows, 1))).sum(axis=1)
    return probabilities, np.where(draw.random(rows) < 0.8, guess, 0)


def multi_label(rows: int, classes: int = 4, seed: int = 0) -> Data:
    draw = np.random.default_rng(seed)
    probabilities = draw.beta(0.6, 1.5, (rows, classes))
    return probabilities, (draw.random((rows, classes)) < probabilities).astype(np.uint8)


def by_scikit_learn(probabilities: np.ndarray, labels: np.ndarray, limits: np.ndarray) -> dict[str, float]:
    """The summary of copied rows, by scikit-learn."""
    classes = np.arange(probabilities.shape[1])
    if labels.ndim == 2:
        predicted = (probabilities >= limits).astype(int)
        loss = reference.log_loss(labels.ravel(), probabilities.ravel(), labels=[0, 1])
    else:
        predicted = probabilities.argmax(axis=1)
        loss = reference.log_loss(labels, probabilities, labels=classes)
    f1 = {
        f"{kind}_f1": reference.f1_score(labels, predicted, average=kind, zero_division=0)
        for kind in ("macro", "micro", "weighted")
    }
    ece = expected_calibration_error(probabilities, labels)  # test_calibration.py compares it with a loop
    return {"accuracy": reference.accuracy_score(labels, predicted), **f1, "log_loss": loss, "ece": ece}


LIMITS = np.array([0.5, 0.3, 0.2, 0.6])
TASKS = [
    pytest.param(*single_label(70), None, id="single-label"),
    pytest.param(*multi_label(60), None, id="multi-label"),
    pytest.param(*multi_label(60), LIMITS, id="thresholds"),
]


@pytest.mark.parametrize(("probabilities", "labels", "limits"), TASKS)
def test_bootstrap_metrics_equal_scikit_learn_on_resampled_rows(
    probabilities: np.ndarray, labels: np.ndarray, limits: np.ndarray | None
) -> None:
    rows, resamples = len(labels), 40
    found = bootstrap_metrics(probabilities, labels, limits, resamples=resamples, seed=5)
    drawn = np.random.default_rng(5).integers(rows, size=(resamples, rows), dtype=np.uint32)
    cut = np.full(probabilities.shape[1], 0.5) if limits is None else limits
    wanted = [by_scikit_learn(probabilities[picked], labels[picked], cut) for picked in drawn]
    assert list(found) == list(METRICS)
    for name in METRICS:
        np.testing.assert_allclose(found[name], [line[name] for line in wanted], atol=1e-9, err_msg=name)
        assert len(np.unique(found[name])) > 3  # resamples differ, so the comparison says something


@pytest.mark.parametrize(
    ("probabilities", "labels", "limits"),
    [
        TASKS[0],  # the resampled metrics of all tasks are compared above
        *[pytest.param(*task.values, id=task.id, marks=pytest.mark.slow) for task in TASKS[1:]],
    ],
)
def test_bootstrap_intervals_equal_those_of_a_plain_loop(
    probabilities: np.ndarray, labels: np.ndarray, limits: np.ndarray | None
) -> None:
    """Other draws, so agreement is in distribution: ends within a quarter of the interval's width."""
    found = bootstrap_intervals(probabilities, labels, limits)
    draw, rows = np.random.default_rng(99), len(labels)
    cut = np.full(probabilities.shape[1], 0.5) if limits is None else limits
    loop = []
    for _ in range(300):
        picked = draw.choice(rows, rows)
        loop.append(by_scikit_learn(probabilities[picked], labels[picked], cut))
    for name in METRICS:
        wanted = np.percentile([line[name] for line in loop], [2.5, 97.5])
        np.testing.assert_allclose(found[name], wanted, atol=0.25 * (wanted[1] - wanted[0]), err_msg=name)


def test_bootstrap_interval_is_the_middle_95_percent_of_the_resamples() -> None:
    data = single_label(200)
    found, drawn = bootstrap_intervals(*data, seed=3), bootstrap_metrics(*data, seed=3)
    for name, values in drawn.items():
        assert values.shape == (2000,)
        low, high = found[name]
        assert type(low) is type(high) is float
        assert np.mean(values < low) == pytest.approx(0.025, abs=0.02)
        assert np.mean(values > high) == pytest.approx(0.025, abs=0.02)
        assert np.mean((values >= low) & (values <= high)) >= 0.945


def test_the_accuracy_interval_covers_the_truth() -> None:
    """300 test sets of 150 rows from one head whose true accuracy is known."""
    truth, covered, draw = 0.8, 0, np.random.default_rng(1)
    for number in range(300):
        right = draw.random(150) < truth
        probabilities = np.where(right[:, None], [0.3, 0.7], [0.7, 0.3])
        low, high = bootstrap_intervals(probabilities, np.ones(150, np.int64), resamples=400, seed=number)[
            "accuracy"
        ]
        covered += low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_the_log_loss_and_f1_intervals_cover_the_truth() -> None:
    """Multi-label; the truth is that of 200,000 rows."""
    everything = multi_label(200_000, seed=77)
    truth = score(*everything, ("a", "b", "c", "d")).summary
    covered = dict.fromkeys(("log_loss", "micro_f1", "macro_f1", "weighted_f1"), 0)
    for number in range(200):
        found = bootstrap_intervals(*multi_label(200, seed=number), resamples=300, seed=number)
        for name in covered:
            covered[name] += found[name][0] <= truth[name] <= found[name][1]
    for name, count in covered.items():
        assert 0.88 <= count / 200 <= 0.995, name


def test_accuracy_interval_is_as_wide_as_that_of_the_binomial_distribution() -> None:
    probabilities, labels = single_label(1000)
    share = score(probabilities, labels, ("a", "b", "c")).accuracy
    low, high = bootstrap_intervals(probabilities, labels)["accuracy"]
    assert low < share < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 1000), rel=0.1)


def test_more_rows_give_narrower_intervals() -> None:
    few, many = bootstrap_intervals(*single_label(200)), bootstrap_intervals(*single_label(3200))
    for name in METRICS:
        ratio = np.diff(few[name]) / np.diff(many[name])
        assert 2 < ratio < 8, name  # the root of 16 is 4


@pytest.mark.parametrize("data", [single_label(300), multi_label(300)], ids=["single", "multi"])
def test_bootstrap_metrics_depend_on_the_seed_and_not_on_the_chunks(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bootstrap_intervals(*data, resamples=101, seed=4)
    assert bootstrap_intervals(*data, resamples=101, seed=4) == first
    assert bootstrap_intervals(*data, resamples=101, seed=5) != first
    for size in (1, 300 * 7):  # one resample at a time, seven with a rest of three
        monkeypatch.setattr(intervals, "_CHUNK", size)
        again = bootstrap_intervals(*data, resamples=101, seed=4)
        for name in METRICS:
            assert again[name] == pytest.approx(first[name], abs=1e-12)


def test_intervals_of_one_row() -> None:
    found = bootstrap_intervals(np.array([[0.25, 0.75]]), np.array([1]))
    for name, wanted in score(np.array([[0.25, 0.75]]), np.array([1]), ("a", "b")).summary.items():
        assert name in intervals.SHARES or found[name] == pytest.approx((wanted, wanted))
    assert found["accuracy"] == pytest.approx((0.025, 1)) and found["ece"] == pytest.approx((0.25, 0.25))


def test_interval_of_all_correct_rows() -> None:
    labels = np.arange(60) % 3
    found = bootstrap_intervals(np.eye(3)[labels], labels)
    for name in ("accuracy", "macro_f1", "micro_f1", "weighted_f1"):
        assert found[name] == pytest.approx((0.025 ** (1 / 60), 1))
    assert found["log_loss"] == found["ece"] == (0, 0)


@pytest.mark.parametrize("labels", [np.zeros(0, np.int64), np.zeros((0, 2), np.uint8)])
@pytest.mark.filterwarnings("error")
def test_intervals_of_no_rows_are_nan(labels: np.ndarray) -> None:
    found = bootstrap_intervals(np.zeros((0, 2)), labels)
    assert list(found) == list(METRICS) and np.isnan(list(found.values())).all()


def test_bootstrap_refuses_wrong_input() -> None:
    with pytest.raises(UsageError, match="resamples"):
        bootstrap_intervals(*single_label(5), resamples=0)
    with pytest.raises(UsageError, match="do not fit"):
        bootstrap_intervals(np.ones((2, 3)), np.zeros(4, np.int64))
    with pytest.raises(UsageError, match="single-label"):
        bootstrap_intervals(*single_label(5), np.full(3, 0.5))
    with pytest.raises(HeadError, match="NaN"):
        bootstrap_intervals(np.full((2, 3), np.nan), np.zeros(2, np.int64))


@pytest.mark.parametrize("data", [single_label(1200, 15), multi_label(1200, 15)], ids=["single", "multi"])
def test_bootstrap_of_a_usual_test_set_is_fast(data: Data) -> None:
    """A tenth of the limit on an idle core; the best of three, since others may use it."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        bootstrap_intervals(*data)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5


def test_memory_does_not_grow_with_the_number_of_resamples() -> None:
    data = single_label(20_000)
    peaks = []
    bootstrap_metrics(*data, resamples=1)  # imports
    for resamples in (500, 2000):  # a chunk is 200
        tracemalloc.start()
        bootstrap_metrics(*data, resamples=resamples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 250e6


@pytest.mark.parametrize(("right", "ends"), [(True, (0.881, 1.0)), (False, (0.0, 0.119))])
def test_rows_that_are_all_right_have_the_exact_interval(right: bool, ends: tuple[float, float]) -> None:
    """Clopper and Pearson, 29 of 29: resamples are all alike and say nothing."""
    labels = np.arange(29) % 2
    predicted = labels if right else 1 - labels
    found = bootstrap_intervals(np.eye(2)[predicted] * 0.8 + 0.1, labels)
    assert found["accuracy"] == pytest.approx(ends, abs=5e-4)
