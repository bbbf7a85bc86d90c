"""Learning curves: sizes and orders of the rows, scores, and the saved curve."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from featcache.cache.catalog import CacheFile, Features
from featcache.errors import HeadError, UsageError
from featcache.heads.features import LabelledFeatures
from featcache.heads.registry import KINDS
from featcache.runs import learning_curve as module
from featcache.runs.curve_fits import nested_order
from featcache.runs.inputs.splits import CachedSplits
from featcache.runs.learning_curve import Curve, Plan, learning_curve, sizes_of
from featcache.settings import FeatureSettings, HeadSettings, PathSettings, Settings
from tests.support.documents import encoder_document
from tests.support.feature_rows import clusters, tagged

MakeCurve = Callable[..., Curve]


def data_of(**splits: LabelledFeatures) -> CachedSplits:
    """What `load_data` would return for features that are cached."""
    y = splits["train"][1]
    names = tuple(f"c{i}" for i in range(y.shape[1] if y.ndim == 2 else int(y.max()) + 1))
    features = {
        split: Features(
            split, "last/cls", x, y, names, np.zeros((len(y), 32), np.uint8), encoder_document(), "0", Path()
        )
        for split, (x, y) in splits.items()
    }
    files = {split: cast(CacheFile, SimpleNamespace(fingerprint=f"{split}-0")) for split in splits}
    return CachedSplits(files, {"last/cls": features})


@pytest.fixture
def make_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCurve:
    """`make_curve(data, kind="ridge", ...)`: its curve, saved in the test's own folder."""

    def make(
        data: CachedSplits, *, head: HeadSettings | None = None, progress: Any = None, **plan: Any
    ) -> Curve:
        monkeypatch.setattr(module, "load_data", lambda settings, views: data)
        settings = Settings(
            features=FeatureSettings(views=("last/cls",)),
            head=head or HeadSettings(),
            paths=PathSettings(reports_dir=str(tmp_path)),
        )
        return learning_curve(settings, Plan(**plan), progress=progress)

    return make


def easy(rows: int = 400, **changes: Any) -> CachedSplits:
    parts = {"train": (rows, 1), "validation": (150, 2), "test": (200, 3)}
    return data_of(**{name: clusters(count, seed=seed, **changes) for name, (count, seed) in parts.items()})


# ---------------------------------------------------------------- orders and sizes


@given(st.lists(st.integers(0, 6), min_size=1, max_size=150), st.integers(-5, 2**63))
def test_nested_order_has_each_class_and_its_share_in_every_beginning(labels: list[int], seed: int) -> None:
    y = np.array(labels)
    order = nested_order(y, seed)
    assert sorted(order.tolist()) == list(range(len(y)))
    counts = np.bincount(y)
    classes = np.count_nonzero(counts)
    assert len(set(y[order[:classes]].tolist())) == classes
    for size in range(1, len(y) + 1):
        found = np.bincount(y[order[:size]], minlength=len(counts))
        assert np.abs(found - size * counts / len(y)).max() <= classes + 1


def test_nested_order_is_random_but_the_same_for_a_seed() -> None:
    y = np.arange(200) % 2
    orders = [nested_order(y, seed).tolist() for seed in range(20)]
    assert orders[3] == nested_order(y, 3).tolist()
    assert len({tuple(order) for order in orders}) == 20
    first_ten = np.bincount([row for order in orders for row in order[:10]], minlength=200)
    assert first_ten.max() <= 6  # no row is preferred: 1 is expected


def test_nested_order_spreads_multi_label_rows_by_their_rarest_label() -> None:
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
def test_sizes_of_ascends_to_all_rows(rows: int, classes: int, points: int) -> None:
    found = sizes(rows, classes, points=points)
    assert found[-1] == rows and found[0] >= 2 and len(found) <= points
    assert all(a < b for a, b in itertools.pairwise(found))


def test_sizes_of_is_log_spaced_from_two_rows_a_class() -> None:
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
def test_plan_check_refuses_values_out_of_range(
    plan: dict[str, Any], words: str, make_curve: MakeCurve, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        make_curve(easy(), **plan)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_learning_curve_scores_are_those_of_scikit_learn_on_the_same_rows(
    metric: str, make_curve: MakeCurve
) -> None:
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


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("lexical", "attentive")]
)  # it reads no cache
def test_learning_curve_of_every_kind_grows(kind: str, make_curve: MakeCurve) -> None:
    head = HeadSettings(epochs=15, lr=0.02, hidden=16)
    curve = make_curve(easy(noise=1.0), kind=kind, points=3, seeds=2, head=head)
    assert curve.points[-1].rows == 400 and len(curve.points) == 3
    assert curve.points[-1].score > max(curve.points[0].score, 0.7)
    alike = len(set(curve.points[-1].scores)) == 1
    assert alike or kind in ("linear", "mlp")  # all rows are the same rows for each seed
    assert bool(curve.points[0].penalties) == (kind in ("exact", "logistic"))


def test_learning_curve_with_several_labels_a_row(make_curve: MakeCurve) -> None:
    """Thresholds come from validation, as in train-head; the accuracy is that of whole label sets."""
    parts = {"train": 400, "validation": 150, "test": 200}
    data = data_of(**{name: tagged(rows, seed=n) for n, (name, rows) in enumerate(parts.items())})
    curve = make_curve(data, points=3, seeds=2, metric="macro_f1", penalties=(0.1,))
    assert curve.points[-1].score > curve.points[0].score > 0.3
    fit = KINDS["exact"].fit(
        data.rows("last/cls", "train"), data.rows("last/cls", "validation"), 4, HeadSettings(C=0.1), seed=0
    )
    from scipy.special import expit

    from featcache.evaluation.calibration import tune_thresholds

    held_out, test = (data.rows("last/cls", name) for name in ("validation", "test"))
    limits = tune_thresholds(expit(fit.best.logits(held_out[0]).astype(np.float64)), held_out[1])
    said = expit(fit.best.logits(test[0]).astype(np.float64)) >= limits
    expected = f1_score(test[1], said, average="macro", zero_division=0)
    assert curve.points[-1].score == pytest.approx(expected, abs=1e-9)


def test_learning_curve_without_test_is_about_validation(make_curve: MakeCurve) -> None:
    data = easy()
    del data.files["test"], data.features["last/cls"]["test"]
    curve = make_curve(data, sizes=(50,), seeds=1, penalties=(0.1,))
    assert curve.split == "validation" and curve.document["split"] == "validation"


def test_learning_curve_with_rare_classes_and_equal_rows(make_curve: MakeCurve) -> None:
    """One row of a class, every row three times, and more classes than the smallest size has rows."""
    x, y = clusters(120, classes=3, seed=1, noise=1.0)
    y = np.concatenate([np.repeat(y, 3), [3, 4]])
    x = np.concatenate([np.repeat(x, 3, axis=0), x[:2] + 9])
    data = data_of(train=LabelledFeatures(x, y), validation=clusters(100, seed=2), test=clusters(100, seed=3))
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
def test_learning_curve_names_a_size_that_cannot_be_fitted(
    plan: dict[str, Any], words: str, make_curve: MakeCurve
) -> None:
    data = easy()
    if plan["kind"] == "ridge":
        data.rows("last/cls", "train")[0][:] = 1.0
    with pytest.raises(HeadError, match=words) as caught:
        make_curve(data, **plan)
    assert caught.value.hint


def test_learning_curve_refuses_a_single_class(make_curve: MakeCurve) -> None:
    data = easy()
    data.rows("last/cls", "train")[1][:] = 0
    with pytest.raises(HeadError, match="single class"):
        make_curve(data)


# ---------------------------------------------------------------- on disk, interrupted, twice


def test_learning_curve_saves_what_it_returns(make_curve: MakeCurve, tmp_path: Path) -> None:
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
def test_learning_curve_continues_after_an_interruption(
    hurt: str, make_curve: MakeCurve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers as without an interruption, and finished fits are not made again."""
    whole = without_time(make_curve(easy(200), points=3, seeds=3, penalties=(0.1, 1.0)))
    fits: list[int] = []
    exact = KINDS["exact"]

    def counted(train: LabelledFeatures, *others: Any, **more: Any) -> Any:
        fits.append(len(train[0]))
        return exact.fit(train, *others, **more)

    monkeypatch.setitem(KINDS, "exact", exact._replace(fit=counted))

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


def test_learning_curve_with_other_settings_has_another_folder(make_curve: MakeCurve) -> None:
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


def test_learning_curve_progress_counts_rows_up_to_all(make_curve: MakeCurve) -> None:
    seen: list[tuple[int, int, int, int]] = []
    make_curve(easy(), kind="ridge", sizes=(20, 100), seeds=2, progress=lambda *line: seen.append(line))
    assert seen == [(20, 240, 20, 0), (120, 240, 100, 0), (140, 240, 20, 1), (240, 240, 100, 1)]
