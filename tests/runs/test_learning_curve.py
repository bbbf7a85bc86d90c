"""Learning curves: sizes and orders, scores, intervals, the law and what it says of more rows."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from featcache.cache.catalog import CacheFile, Features
from featcache.errors import HeadError, UsageError
from featcache.evaluation.extrapolation import Measured, foretell
from featcache.evaluation.power_law import fit_power_laws
from featcache.heads.registry import KINDS
from featcache.runs import learning_curve as module
from featcache.runs.learning_curve import Curve, Plan, learning_curve, nested_order, sizes_of
from featcache.runs.train import Data
from featcache.settings import HeadSettings, PathSettings, Settings
from tests.support.feature_rows import clusters, tagged

Rows = tuple[np.ndarray, np.ndarray]
MakeCurve = Callable[..., Curve]


def data_of(**splits: Rows) -> Data:
    """What `load_data` would return for features that are cached."""
    y = splits["train"][1]
    names = tuple(f"c{i}" for i in range(y.shape[1] if y.ndim == 2 else int(y.max()) + 1))
    features = {
        split: Features(split, "last/cls", x, y, names, np.zeros((len(y), 32), np.uint8), {}, "0", Path())
        for split, (x, y) in splits.items()
    }
    files = {split: cast(CacheFile, SimpleNamespace(fingerprint=f"{split}-0")) for split in splits}
    return Data(files, {"last/cls": features})


@pytest.fixture
def make_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCurve:
    """`make_curve(data, kind="ridge", ...)`: its curve, saved in the test's own folder."""

    def make(data: Data, *, head: HeadSettings | None = None, progress: Any = None, **plan: Any) -> Curve:
        monkeypatch.setattr(module, "load_data", lambda settings, views: data)
        settings = Settings(head=head or HeadSettings(), paths=PathSettings(reports_dir=str(tmp_path)))
        return learning_curve(settings, Plan(**plan), progress=progress)

    return make


def easy(rows: int = 400, **changes: Any) -> Data:
    parts = {"train": (rows, 1), "validation": (150, 2), "test": (200, 3)}
    return data_of(**{name: clusters(count, seed=seed, **changes) for name, (count, seed) in parts.items()})


# ---------------------------------------------------------------- orders and sizes


@given(st.lists(st.integers(0, 6), min_size=1, max_size=150), st.integers(-5, 2**63))
def test_every_beginning_has_each_class_and_its_share(labels: list[int], seed: int) -> None:
    y = np.array(labels)
    order = nested_order(y, seed)
    assert sorted(order.tolist()) == list(range(len(y)))
    counts = np.bincount(y)
    classes = np.count_nonzero(counts)
    assert len(set(y[order[:classes]].tolist())) == classes
    for size in range(1, len(y) + 1):
        found = np.bincount(y[order[:size]], minlength=len(counts))
        assert np.abs(found - size * counts / len(y)).max() <= classes + 1


def test_orders_are_random_but_the_same_for_a_seed() -> None:
    y = np.arange(200) % 2
    orders = [nested_order(y, seed).tolist() for seed in range(20)]
    assert orders[3] == nested_order(y, 3).tolist()
    assert len({tuple(order) for order in orders}) == 20
    first_ten = np.bincount([row for order in orders for row in order[:10]], minlength=200)
    assert first_ten.max() <= 6  # no row is preferred: 1 is expected


def test_multi_label_rows_are_dealt_by_their_rarest_label() -> None:
    y = np.zeros((100, 3), np.uint8)
    y[:60, 0] = 1
    y[:10, 1] = 1
    y[99, 2] = 1
    order = nested_order(y, 0)
    first = y[order[:4]]  # a row each of: the first label alone, with the second, the third, none
    assert first.any(axis=0).all() and (~first.any(axis=1)).any()
    assert sorted(order.tolist()) == list(range(100))


def sizes(rows: int, classes: int = 2, **plan: Any) -> tuple[int, ...]:
    return sizes_of(Plan(**plan), np.full(classes, 5), rows, HeadSettings())


@given(st.integers(2, 10**7), st.integers(1, 300), st.integers(2, 30))
def test_sizes_ascend_to_all_rows(rows: int, classes: int, points: int) -> None:
    found = sizes(rows, classes, points=points)
    assert found[-1] == rows and found[0] >= 2 and len(found) <= points
    assert all(a < b for a, b in itertools.pairwise(found))


def test_sizes_are_log_spaced_from_two_rows_a_class() -> None:
    assert sizes(9600, points=4) == (10, 99, 973, 9600)
    assert sizes(10_000, classes=77, points=3)[0] == 154
    assert sizes(100, classes=77)[0] == 25  # not the same size eight times
    assert sizes(3) == (2, 3)
    assert sizes(9600, kind="neighbours")[0] == HeadSettings().neighbours
    assert sizes(50, sizes=(50, 10, 10)) == (10, 50)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"sizes": (10, 401)}, "train has 400 rows"),
        ({"sizes": (1, 10)}, "--sizes"),
        ({"sizes": ()}, "--sizes"),
        ({"points": 1}, "--points 1"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": 10**9}, "--seeds"),
        ({"kind": "forest"}, "unknown head"),
        ({"metric": "ece"}, "unknown metric"),
        ({"penalties": ()}, "--C"),
    ],
)
def test_plans_without_sense(plan: dict[str, Any], words: str, make_curve: MakeCurve, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        make_curve(easy(), **plan)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_scores_are_those_of_scikit_learn_on_the_same_rows(metric: str, make_curve: MakeCurve) -> None:
    """The penalty is chosen on validation, by the metric, then the log loss; the score is that of test."""
    data, penalties = easy(), (1e-3, 0.1, 10.0)
    curve = make_curve(data, sizes=(30, 200), seeds=2, penalties=penalties, metric=metric)
    assert (curve.split, curve.metric, curve.view) == ("test", metric, "last/cls")
    (x, y), held_out, test = (data.rows("last/cls", name) for name in ("train", "validation", "test"))

    def scored(truth: np.ndarray, said: np.ndarray) -> float:
        if metric == "accuracy":
            return float(accuracy_score(truth, said))
        return float(f1_score(truth, said, average="macro"))

    for point, seed in itertools.product(curve.points, range(2)):
        rows = nested_order(y, seed)[: point.rows]
        scaler = StandardScaler().fit(x[rows])
        models = [
            LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(scaler.transform(x[rows]), y[rows])
            for C in penalties
        ]
        ranks = []
        for C, model in zip(penalties, models, strict=True):
            said = model.predict_proba(scaler.transform(held_out[0]))
            loss = -np.log(said[np.arange(len(said)), held_out[1]]).mean()
            ranks.append((scored(held_out[1], said.argmax(axis=1)), -loss, -C))
        best = ranks.index(max(ranks))
        assert point.penalties[seed] == penalties[best]
        said = models[best].predict(scaler.transform(test[0]))
        assert point.scores[seed] == pytest.approx(scored(test[1], said), abs=1e-9)
    assert curve.points[0].score == pytest.approx(np.mean(curve.points[0].scores))
    assert curve.points[0].deviation == pytest.approx(np.std(curve.points[0].scores, ddof=1))
    doublings = np.log2(200 / 30)
    gain = (curve.points[1].score - curve.points[0].score) / doublings
    assert curve.points[0].per_doubling is None
    assert curve.points[1].per_doubling == pytest.approx(gain)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_curve_that_grows(kind: str, make_curve: MakeCurve) -> None:
    head = HeadSettings(epochs=15, lr=0.02, hidden=16)
    curve = make_curve(easy(noise=1.0), kind=kind, points=3, seeds=2, head=head)
    assert curve.points[-1].rows == 400 and len(curve.points) == 3
    assert curve.points[-1].score > max(curve.points[0].score, 0.7)
    alike = len(set(curve.points[-1].scores)) == 1
    assert alike or kind in ("linear", "mlp")  # all rows are the same rows for each seed
    assert bool(curve.points[0].penalties) == (kind in ("exact", "logistic"))


def test_several_labels_a_row(make_curve: MakeCurve) -> None:
    """Thresholds come from validation, as in train-head; the accuracy is that of whole label sets."""
    parts = {"train": 400, "validation": 150, "test": 200}
    data = data_of(**{name: tagged(rows, seed=n) for n, (name, rows) in enumerate(parts.items())})
    curve = make_curve(data, points=3, seeds=2, metric="macro_f1", penalties=(0.1,))
    assert curve.points[-1].score > curve.points[0].score > 0.3
    fit = KINDS["exact"][0](
        data.rows("last/cls", "train"), data.rows("last/cls", "validation"), 4, HeadSettings(C=0.1), seed=0
    )
    from scipy.special import expit

    from featcache.evaluation.calibration import tune_thresholds

    held_out, test = (data.rows("last/cls", name) for name in ("validation", "test"))
    limits = tune_thresholds(expit(fit.best.logits(held_out[0]).astype(np.float64)), held_out[1])
    said = expit(fit.best.logits(test[0]).astype(np.float64)) >= limits
    expected = f1_score(test[1], said, average="macro", zero_division=0)
    assert curve.points[-1].score == pytest.approx(expected, abs=1e-9)


def test_without_test_it_is_validation_and_says_so(make_curve: MakeCurve) -> None:
    data = easy()
    del data.files["test"], data.features["last/cls"]["test"]
    curve = make_curve(data, sizes=(50,), seeds=1, penalties=(0.1,))
    assert curve.split == "validation" and curve.document["split"] == "validation"


def test_rare_classes_and_equal_rows(make_curve: MakeCurve) -> None:
    """One row of a class, every row three times, and more classes than the smallest size has rows."""
    x, y = clusters(120, classes=3, seed=1, noise=1.0)
    y = np.concatenate([np.repeat(y, 3), [3, 4]])
    x = np.concatenate([np.repeat(x, 3, axis=0), x[:2] + 9])
    data = data_of(train=(x, y), validation=clusters(100, seed=2), test=clusters(100, seed=3))
    curve = make_curve(data, sizes=(3, 40, 362), seeds=3)
    assert curve.points[-1].score > curve.points[0].score
    assert all(np.isfinite(point.scores).all() for point in curve.points)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"kind": "neighbours", "sizes": (10, 100)}, "10 rows, seed 0: 15 neighbours of 10 rows"),
        ({"kind": "ridge", "sizes": (2,)}, "the same features"),
    ],
)
def test_a_size_that_cannot_be_fitted_is_named(
    plan: dict[str, Any], words: str, make_curve: MakeCurve
) -> None:
    data = easy()
    if plan["kind"] == "ridge":
        data.rows("last/cls", "train")[0][:] = 1.0
    with pytest.raises(HeadError, match=words) as caught:
        make_curve(data, **plan)
    assert caught.value.hint


def test_one_class_only(make_curve: MakeCurve) -> None:
    data = easy()
    data.rows("last/cls", "train")[1][:] = 0
    with pytest.raises(HeadError, match="single class"):
        make_curve(data)


# ---------------------------------------------------------------- on disk, interrupted, twice


def test_what_is_saved_is_what_is_returned(make_curve: MakeCurve, tmp_path: Path) -> None:
    curve = make_curve(easy(), points=5, seeds=2, penalties=(0.1,))
    assert curve.folder.parent == tmp_path and curve.folder.name.startswith("curve-exact-last-cls-")
    assert [path.name for path in curve.folder.iterdir()] == ["curve.json"]
    saved = json.loads((curve.folder / "curve.json").read_text(encoding="utf-8"))
    assert saved | json.loads(json.dumps(curve.document)) == saved
    assert saved["request"]["sizes"] == [point["rows"] for point in saved["points"]]
    assert len(saved["outlook"]["forecasts"]) == 3


def without_time(curve: Curve) -> dict[str, Any]:
    return curve.document | {"seconds": None}


@pytest.mark.parametrize("hurt", ["", "half", "garbage", "wrong shape"])
def test_an_interrupted_curve_goes_on(
    hurt: str, make_curve: MakeCurve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers as without an interruption, and finished fits are not made again."""
    whole = without_time(make_curve(easy(200), points=3, seeds=3, penalties=(0.1, 1.0)))
    fits: list[int] = []
    solve, used = KINDS["exact"]

    def counted(train: Rows, *others: Any, **more: Any) -> Any:
        fits.append(len(train[0]))
        return solve(train, *others, **more)

    monkeypatch.setitem(KINDS, "exact", (counted, used))

    def stop(done: int, total: int, size: int, seed: int) -> None:
        if len(fits) == 8:  # four fits of two penalties
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_curve(easy(200), points=3, seeds=3, penalties=(0.1, 1.0), progress=stop)
    (kept,) = tmp_path.rglob("fits.npz")
    content = kept.read_bytes()
    if hurt == "half":
        kept.write_bytes(content[: len(content) // 2])
    elif hurt == "garbage":
        kept.write_bytes(b"PK\x03\x04" + content[4:60] + b"\xff" * 200)
    elif hurt == "wrong shape":
        np.savez(kept, **{"10-0": np.zeros(3)})
    assert without_time(make_curve(easy(200), points=3, seeds=3, penalties=(0.1, 1.0))) == whole
    every = 2 * (2 * 3 + 1)  # all rows are fitted for one seed, and serve for all
    assert len(fits) == (8 + every if hurt else every)
    assert not kept.exists()


def test_other_settings_have_another_folder(make_curve: MakeCurve) -> None:
    plan: dict[str, Any] = {"points": 2, "seeds": 1, "penalties": (0.1,)}
    changes: list[dict[str, Any]] = [
        {}, {"points": 3}, {"seeds": 2}, {"penalties": (1.0,)}, {"metric": "macro_f1"},
        {"head": HeadSettings(class_weight="balanced")},
    ]  # fmt: skip
    folders = [make_curve(easy(), **(plan | change)).folder for change in changes]
    assert len(set(folders)) == len(changes)
    assert make_curve(easy(), **plan).folder == folders[0]
    # What the head does not read changes nothing.
    unread = HeadSettings(lr=0.5, C=7.0, penalty="folds")
    assert without_time(make_curve(easy(), head=unread, **plan)) == without_time(make_curve(easy(), **plan))


def test_progress_counts_rows_up_to_all(make_curve: MakeCurve) -> None:
    seen: list[tuple[int, int, int, int]] = []
    make_curve(easy(), kind="ridge", sizes=(20, 100), seeds=2, progress=lambda *line: seen.append(line))
    assert seen == [(20, 240, 20, 0), (120, 240, 100, 0), (140, 240, 20, 1), (240, 240, 100, 1)]


# ---------------------------------------------------------------- intervals


def simulated(
    rows: np.ndarray, errors: np.ndarray, *, orders: int, held_out: int, seed: int, spread: float = 0.3
) -> Measured:
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
    return Measured(rows, right.mean(axis=2), right @ weights.T, held_out)


@pytest.mark.parametrize("orders", [2, 5])
def test_intervals_cover_the_truth(orders: int) -> None:
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
    alone = Measured(rows, found.scores[:, :1], found.draws[:, :1], 400)
    share = alone.scores[:, 0]
    np.testing.assert_allclose(alone.standard_errors()[1], np.sqrt(share * (1 - share) / 400), rtol=0.1)
    ends = np.percentile(alone.draws[:, 0], [2.5, 97.5], axis=1).T
    np.testing.assert_allclose(alone.intervals(), ends, atol=0.012)


def test_scores_that_are_all_1_have_no_interval_beyond_1() -> None:
    found = Measured(np.array([10, 20]), np.ones((2, 3)), np.ones((2, 3, 50)), 100)
    np.testing.assert_array_equal(found.intervals(), np.ones((2, 2)))
    np.testing.assert_array_equal(found.deviations(), 0)


def test_resampled_orders_have_the_variance_of_their_mean() -> None:
    scores = np.random.default_rng(0).normal(0.8, 0.05, size=(2, 5))
    found = Measured(np.array([10, 20]), scores, np.repeat(scores[:, :, None], 20_000, axis=2), 10**6)
    expected = scores.std(axis=1, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.resampled(0).std(axis=0), expected, rtol=0.03)


# ---------------------------------------------------------------- the law


ROWS = np.array([10, 30, 100, 300, 1000, 3000, 9600])


@given(st.floats(0, 0.4), st.floats(0.01, 2.0), st.floats(0.05, 1.5))
@examples(max_examples=50)
def test_a_power_law_is_found_again(limit: float, scale: float, rate: float) -> None:
    errors = limit + scale * (ROWS / 10) ** -rate
    laws = fit_power_laws(ROWS, errors[None], np.ones(len(ROWS)))
    np.testing.assert_allclose(laws.error(ROWS)[0], errors, atol=1e-5)
    np.testing.assert_allclose(laws.error(ROWS * 10)[0], limit + scale * ROWS**-rate, atol=2e-3)


def test_the_law_is_at_least_as_near_as_scipys() -> None:
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


def test_errors_that_rise_make_a_flat_law() -> None:
    laws = fit_power_laws(ROWS, np.linspace(0.1, 0.3, 7)[None], np.ones(7))
    assert laws.scale[0] == 0 and laws.limit[0] == pytest.approx(0.2)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 8)])
def test_laws_of_too_little(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needed"):
        fit_power_laws(ROWS[:7] if shape[-1] == 8 else ROWS[:3], np.full(shape, 0.1), np.ones(shape[-1]))


# ---------------------------------------------------------------- the outlook


def lawful(rows: np.ndarray) -> np.ndarray:
    return np.asarray(0.06 + 0.8 * np.asarray(rows, float) ** -0.4)


def test_forecasts_cover_the_truth() -> None:
    """The gain of twice and ten times the rows, and the score there, where the law holds."""
    runs, inside, doubted = 20, np.zeros(4), 0
    for seed in range(runs):
        told = foretell(simulated(ROWS, lawful(ROWS), orders=5, held_out=1000, seed=seed))
        doubted += bool(told.doubts)
        for place, one in enumerate((told.forecasts[0], told.forecasts[2])):
            truth = 1 - lawful(np.array([one.rows]))[0]
            gain = truth - (1 - lawful(ROWS[-1:])[0])
            inside[place] += one.gain_low <= gain <= one.gain_high
            inside[2 + place] += one.low <= truth <= one.high
    assert (inside >= 0.9 * runs).all(), inside
    assert doubted <= runs / 4


def test_an_outlook_is_the_law_beyond_the_last_size() -> None:
    found = simulated(ROWS, lawful(ROWS), orders=5, held_out=4000, seed=3)
    told = foretell(found)
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
    assert foretell(found) == told  # the same numbers every time


def outlook_of(scores: list[float], rows: np.ndarray | None = None, orders: int = 5) -> Any:
    """Of heads that differ little, on 10,000 rows."""
    sizes = ROWS[: len(scores)] if rows is None else rows
    errors = 1 - np.array(scores)
    return foretell(simulated(sizes, errors, orders=orders, held_out=10_000, seed=5, spread=0.0))


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.9, 0.88, 0.86, 0.84, 0.82, 0.8, 0.78], "does not grow"),
        ([0.8] * 7, "does not grow"),
        ([0.6, 0.75, 0.85, 0.88, 0.88, 0.88, 0.88], "plateau"),
        ([0.6, 0.75, 0.8, 0.82, 0.83, 0.835, 0.93], "the smaller sizes alone foretell"),
        ([0.5, 0.55, 0.65, 0.9, 0.92, 0.92, 0.93], "fits badly"),
    ],
)
def test_curves_that_are_not_to_be_trusted(scores: list[float], words: str) -> None:
    told = outlook_of(scores)
    assert any(words in doubt for doubt in told.doubts), told.doubts
    assert len(told.forecasts) == 3


def test_few_sizes_one_order_and_a_narrow_span() -> None:
    told = outlook_of([0.6, 0.7, 0.8])
    assert told.forecasts == () and told.limit is None and told.backtest is None
    assert "too few" in told.doubts[0] and np.isnan(told.score_at(ROWS)).all()
    assert any("one order" in doubt for doubt in outlook_of((1 - lawful(ROWS)).tolist(), orders=1).doubts)
    narrow = np.array([100, 150, 200, 300, 400])
    doubts = outlook_of((1 - lawful(narrow)).tolist(), narrow).doubts
    assert any("factor of 4" in doubt for doubt in doubts)
    assert outlook_of((1 - lawful(ROWS[:4])).tolist()).backtest is None


def test_perfect_heads_gain_nothing() -> None:
    found = Measured(ROWS, np.ones((7, 3)), np.ones((7, 3, 50)), 100)
    told = foretell(found)
    assert all((one.score, one.gain, one.gain_high) == (1, 0, 0) for one in told.forecasts)
    assert any("does not grow" in doubt for doubt in told.doubts)
    assert all(np.isfinite(part).all() for part in map(list, [told.fitted, dataclasses.astuple(told)[:4]]))
