"""Ridge regression against scikit-learn: its weights, the penalty that is chosen, weighted rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.errors import HeadError
from featcache.heads import features
from featcache.heads.features import LabelledFeatures, WeightedFeatures
from featcache.heads.fit import Fit
from featcache.heads.numbers import ridge
from featcache.heads.numbers.ridge import PENALTIES, fit_ridge
from featcache.settings import HeadSettings


def data(rows: int = 300, width: int = 12, noise: float = 0.5, seed: int = 0) -> LabelledFeatures:
    """Features of different scales, with labels that are linear in them, and noise."""
    dice = np.random.default_rng(seed)
    x = (dice.normal(size=(rows, width)) * np.geomspace(0.1, 10, width) + 3).astype(np.float32)
    y = (x - 3) @ (1 / np.geomspace(0.1, 10, width)) + noise * dice.normal(size=rows)
    return LabelledFeatures(x, (y - y.mean()) / y.std())


def fit(train: LabelledFeatures, validation: LabelledFeatures, **settings: object) -> Fit:
    return fit_ridge(train, validation, 0, HeadSettings(**settings), seed=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 30.0, 1e4])
def test_weights_are_those_of_scikit_learn(
    alpha: float, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "NUMBERS_AT_ONCE", 12 * 70)  # 70 rows at a time
    train, other = data(), data(seed=1)
    weight = np.random.default_rng(2).integers(0, 4, len(train.y)).astype(float) if weighted else None
    rows = train if weight is None else WeightedFeatures(*train, weight)
    found = fit(rows, other, alpha=alpha)
    model = make_pipeline(StandardScaler(), Ridge(alpha)).fit(train.x, train.y, ridge__sample_weight=weight)
    np.testing.assert_allclose(found.best.logits(other.x)[:, 0], model.predict(other.x), atol=2e-4)
    assert found.about == {"alpha": alpha}


def test_the_penalty_has_the_lowest_error_on_validation() -> None:
    train, validation = data(40, 30, noise=2), data(60, 30, noise=2, seed=1)
    chosen = fit(train, validation).about
    errors = {}
    for alpha in PENALTIES:
        model = make_pipeline(StandardScaler(), Ridge(alpha)).fit(train.x, train.y)
        errors[alpha] = np.mean((model.predict(validation.x) - validation.y) ** 2)
    assert chosen is not None and chosen["alpha"] == min(errors, key=errors.__getitem__)
    assert chosen["penalties_tried"] < len(PENALTIES)  # it ends once the error has turned


def test_folds_choose_without_validation() -> None:
    train = data(60, 30, noise=2)
    chosen = fit(train, data(5, 30, seed=3), penalty="folds").about
    assert chosen is not None
    models = {alpha: make_pipeline(StandardScaler(), Ridge(alpha)) for alpha in PENALTIES}
    scores = {
        alpha: cross_val_score(model, *train, cv=5, scoring="neg_mean_squared_error").mean()
        for alpha, model in models.items()
    }
    assert scores[chosen["alpha"]] > max(scores.values()) - 0.05  # other folds, the same neighbourhood
    again = fit(train, data(9, 30, seed=4), penalty="folds").about
    assert again == chosen


def test_a_penalty_that_is_fixed_without_a_value_is_one() -> None:
    assert fit(data(), data(seed=1), penalty="fixed").about == {"alpha": 1.0}


def test_rows_that_cannot_be_learned_from_are_refused() -> None:
    good = data()
    with pytest.raises(HeadError, match="single number"):
        fit(LabelledFeatures(good.x, np.ones(300)), good)
    with pytest.raises(HeadError, match="not of 0 classes"):
        fit(LabelledFeatures(good.x, np.where(np.arange(300) == 7, np.nan, good.y)), good)
    with pytest.raises(HeadError, match="too few for 200 folds"):
        fit(good, good, penalty="folds", folds=200)
    with pytest.raises(HeadError, match="same features"):
        fit(LabelledFeatures(np.ones((300, 2), np.float32), good.y), good)


def test_features_that_repeat_each_other_do_not_stop_the_choice() -> None:
    """Weak penalties cannot be solved then; those that can are enough."""
    rows, other = data(50, 4), data(30, 4, seed=1)
    twice = [LabelledFeatures(np.hstack([part.x] * 3), part.y) for part in (rows, other)]
    assert fit(*twice).about is not None
    assert ridge.TURNED > 1
