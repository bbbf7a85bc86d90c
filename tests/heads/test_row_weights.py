"""Rows that count more than others: the laws that hold for every kind of head, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from featcache.errors import HeadError, UsageError
from featcache.heads.features import LabelledFeatures, Standard, WeightedFeatures
from featcache.heads.registry import KINDS, fit_exact
from featcache.heads.row_weights import WEIGHTED, check_weighted, named_class_weights, weights_of_rows
from featcache.option import weights_by_name
from featcache.settings import HeadSettings, build_settings
from tests.support.feature_rows import clusters

SETTINGS = HeadSettings(epochs=30, lr=0.01, batch_size=60, C=0.1, hidden=8)
DENSE = tuple(kind for kind in WEIGHTED if kind not in ("lexical", "attentive"))
NAMES = ("好", "坏", "一般")


def rows(count: int = 60, *, several: bool = False) -> tuple[np.ndarray, np.ndarray]:
    x, y = clusters(count, noise=2.0)
    x = Standard.of(x)(x)
    return x, (
        np.eye(3, dtype=np.uint8)[y] | np.eye(3, dtype=np.uint8)[(y + np.arange(count) % 2) % 3]
        if several
        else y
    )


def logits(kind: str, train: LabelledFeatures, settings: HeadSettings = SETTINGS) -> np.ndarray:
    plain = LabelledFeatures(train.x, train.y)
    return KINDS[kind].fit(train, plain, 3, settings, seed=0).last.logits(train.x)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("several", [False, True])
def test_equal_weights_change_nothing(kind: str, several: bool) -> None:
    x, y = rows(several=several)
    found = logits(kind, WeightedFeatures(x, y, np.ones(len(x))))
    np.testing.assert_allclose(found, logits(kind, LabelledFeatures(x, y)), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("several", [False, True])
def test_heavy_rows_are_fitted_better(kind: str, several: bool) -> None:
    """Rows with a wrong label: with nearly all the weight, they are believed."""
    x, y = rows(several=several)
    wrong = np.arange(len(x)) % 4 == 0
    y = y.copy()
    y[wrong] = (1 - y[wrong]) if several else (y[wrong] + 1) % 3
    weight = np.where(wrong, 50.0, 1.0)

    def right(train: LabelledFeatures) -> float:
        said = logits(kind, train)
        return float(
            ((said > 0) == y).mean(1)[wrong].mean() if several else (said.argmax(1) == y)[wrong].mean()
        )

    assert right(WeightedFeatures(x, y, weight)) > right(LabelledFeatures(x, y)) + 0.1


@pytest.mark.parametrize("kind", ["logistic", "exact", "ridge"])
def test_a_whole_weight_counts_as_so_many_rows(kind: str) -> None:
    """Of rows that are standardised together: the weights of a feature do not change its scale."""
    x, y = rows()
    times = 1 + np.arange(len(x)) % 3
    repeated = np.repeat(np.arange(len(x)), times)
    weighted = KINDS[kind].fit(
        WeightedFeatures(x, y, times.astype(float)), LabelledFeatures(x, y), 3, SETTINGS, seed=0
    )
    standard = Standard.of(x)
    if kind == "ridge":
        model = RidgeClassifier(alpha=1.0).fit(standard(x)[repeated], y[repeated])
    else:
        model = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(standard(x)[repeated], y[repeated])
    expected = model.decision_function(standard(x))
    found = weighted.best.logits(x)
    np.testing.assert_allclose(
        found - found.mean(1)[:, None], expected - expected.mean(1)[:, None], atol=2e-2
    )


@pytest.mark.parametrize("kind", DENSE)
def test_rows_without_weight_change_nothing_but_the_scale_of_features(kind: str) -> None:
    x, y = rows()
    ignored = np.arange(len(x)) % 5 == 0
    weight = np.where(ignored, 0.0, 1.0)
    changed = np.where(ignored, (y + 1) % 3, y)
    one, other = (logits(kind, WeightedFeatures(x, labels, weight)) for labels in (y, changed))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["ridge", "centroid", "exact", "logistic"])
def test_balanced_is_the_weight_of_each_class(kind: str) -> None:
    x, y = rows(90)
    kept = (y > 0) | (np.arange(90) % 3 == 0)
    x, y = x[kept], y[kept]
    counts = np.bincount(y)
    own = len(y) / (3 * counts[y])
    balanced = HeadSettings(C=0.1, class_weight="balanced")
    found = logits(kind, LabelledFeatures(x, y), balanced)
    np.testing.assert_allclose(found, logits(kind, WeightedFeatures(x, y, own)), rtol=0, atol=2e-3)
    changed = np.abs(found - logits(kind, LabelledFeatures(x, y))).max() > 1e-2
    assert changed == (kind != "centroid")  # the mean of a class is the same with any weight of the class


def test_row_weights_count_in_the_choice_of_the_penalty() -> None:
    x, y = rows(120)
    splits = LabelledFeatures(x, y), LabelledFeatures(x[::2], y[::2])
    weight = np.where(np.arange(120) < 30, 1.0, 1e-3)
    light = fit_exact(WeightedFeatures(x, y, weight), splits[1], 3, HeadSettings()).about
    scaled = fit_exact(WeightedFeatures(x, y, 100 * weight), splits[1], 3, HeadSettings()).about
    assert light is not None and scaled is not None and light["C"] != scaled["C"]


def test_class_weights_by_name_become_weights_of_rows() -> None:
    y = np.array([0, 2, 1, 1])
    assert named_class_weights("坏=3", NAMES).tolist() == [1, 3, 1]  # type: ignore[union-attr]
    assert weights_of_rows(y, NAMES, "坏=3,好=0.5", None).tolist() == [0.5, 1, 3, 3]  # type: ignore[union-attr]
    own = np.array([1.0, 2, 0, 4])
    assert weights_of_rows(y, NAMES, '{"坏": 3}', own).tolist() == [1, 2, 0, 12]  # type: ignore[union-attr]
    assert weights_of_rows(y, NAMES, "balanced", None) is None
    assert weights_of_rows(y, NAMES, "none", own) is own


@pytest.mark.bad_input("defects")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("好", "none, balanced, or weights by name"),
        ("好=much", "none, balanced, or weights by name"),
        ("好=-1", "the weight of '好' is -1"),
        ("好=0", "the weight of '好' is 0"),
        ("好=nan", "the weight of '好' is nan"),
        ("好=1,好=2", "a name twice"),
        ("=1", "a name twice, or none"),
        ("", "none, balanced"),
        ("{", "none, balanced"),
        ('{"好": {}}', "none, balanced"),
    ],
)
def test_texts_that_are_no_class_weights_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weights_by_name(text)
    with pytest.raises(UsageError, match="--class-weight: "):
        build_settings({"class_weight": text})


@pytest.mark.bad_input("defects")
def test_weights_that_do_not_fit_the_labels_or_the_head_are_refused() -> None:
    y = np.array([0, 0, 1])
    with pytest.raises(UsageError, match="no label '很好'\nlabels: 好, 坏, 一般"):
        weights_of_rows(y, NAMES, "很好=2", None)
    with pytest.raises(UsageError, match="one label a row"):
        weights_of_rows(np.eye(3, dtype=np.uint8), NAMES, "好=2", None)
    with pytest.raises(UsageError, match="all rows with the label '好' have weight 0"):
        weights_of_rows(y, NAMES, "none", np.array([0.0, 0, 1]))
    for kind in set(KINDS) - set(WEIGHTED):
        with pytest.raises(UsageError, match=f"the {kind} head counts all rows alike"):
            check_weighted(kind, "--weight-column")
    x, y = rows()
    with pytest.raises(HeadError, match="need names"):
        logits("linear", LabelledFeatures(x, y), HeadSettings(class_weight="a=1"))
