"""The linear and the logistic head against torch and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import HeadError
from featcache.evaluation.metrics import score
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Epoch, Fit
from featcache.heads.head import Head
from featcache.heads.probabilities import softmax
from featcache.heads.registry import fit_linear, fit_logistic
from featcache.heads.scorers import Linear
from featcache.settings import HeadSettings
from tests.support.documents import encoder_document
from tests.support.feature_rows import clusters, standardised
from tests.support.stock import one_thread


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Any:
    with one_thread():
        yield


def head_of(scorer: Linear) -> Head:
    names = tuple(f"class {number}" for number in range(scorer.classes))
    return Head(scorer, names, "last/cls", encoder_document(), "linear")


def torch_reference(
    train: LabelledFeatures, config: HeadSettings, seed: int, classes: int = 3
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights for raw features after each epoch, by torch's own layer, loss, autograd and AdamW."""
    x = torch.tensor(standardised(train[0])[0], dtype=torch.float32)
    y = torch.tensor(train[1])
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    order = torch.Generator().manual_seed(seed)
    mean, scale = train[0].astype(np.float64).mean(0), train[0].astype(np.float64).std(0)
    after = []
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x), generator=order).split(config.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimizer.step()
        weight = layer.weight.detach().double().numpy() / scale
        after.append((weight, layer.bias.detach().double().numpy() - weight @ mean))
    return after


# ---------------------------------------------------------------- AdamW


@pytest.mark.parametrize(
    "config",
    [
        HeadSettings(epochs=8, batch_size=16),
        HeadSettings(epochs=8, batch_size=7, lr=0.02, weight_decay=0.3),
        HeadSettings(epochs=8, batch_size=1, lr=5e-3, weight_decay=0.0),
        HeadSettings(epochs=8, batch_size=1000, lr=0.05),
    ],
    ids=lambda config: f"{config.batch_size}-{config.lr}-{config.weight_decay}",
)
@pytest.mark.parametrize("seed", [0, 5])
def test_fit_linear_equals_torch(config: HeadSettings, seed: int) -> None:
    train, validation = clusters(90), clusters(40, seed=1)
    fit = fit_linear(train, validation, 3, config, seed=seed)
    expected = torch_reference(train, config, seed)
    for scorer, wanted in ((fit.last, expected[-1]), (fit.best, expected[fit.best_epoch - 1])):
        found = (scorer.weight, scorer.bias)
        assert [part.dtype for part in found] == [np.float32, np.float32]
        np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found[1], wanted[1], rtol=0, atol=1e-5)
    for line, weights in zip(fit.history, expected, strict=True):
        logits, y = torch.tensor(validation[0] @ weights[0].T + weights[1]), torch.tensor(validation[1])
        loss = torch.nn.functional.cross_entropy(logits, y).item()
        assert line.validation_loss == pytest.approx(loss, abs=1e-5)
        assert line.validation_accuracy == pytest.approx((logits.argmax(1) == y).double().mean().item())


def test_best_epoch_is_chosen_by_validation_accuracy() -> None:
    """Validation labels that training moves away from after a while."""
    train, validation = clusters(60, noise=3.0), clusters(30, seed=3, noise=3.0)
    config = HeadSettings(epochs=40, lr=0.05, batch_size=8)
    lines: list[Epoch] = []
    fit = fit_linear(train, validation, 3, config, seed=0, on_epoch=lines.append)
    assert tuple(lines) == fit.history
    assert [line.epoch for line in lines] == list(range(1, 41))
    ranks = [(line.validation_accuracy, -line.validation_loss) for line in fit.history]
    assert fit.best_epoch == 1 + ranks.index(max(ranks))
    assert 1 < fit.best_epoch < 40  # else this tests nothing
    assert max(lines, key=lambda line: line.train_accuracy).epoch != fit.best_epoch
    shorter = HeadSettings(epochs=fit.best_epoch, lr=0.05, batch_size=8)
    wanted = fit_linear(train, validation, 3, shorter, seed=0).last
    np.testing.assert_array_equal(fit.best.weight, wanted.weight)
    np.testing.assert_array_equal(fit.best.bias, wanted.bias)
    best = fit.history[fit.best_epoch - 1]
    probabilities = head_of(fit.best).predict_proba(validation[0])
    log_loss = score(probabilities, validation[1], ("a", "b", "c")).log_loss
    assert log_loss == pytest.approx(best.validation_loss, abs=1e-5)
    assert (probabilities.argmax(1) == validation[1]).mean() == pytest.approx(best.validation_accuracy)


def test_best_epoch_of_equal_accuracies_has_the_lowest_loss() -> None:
    train, validation = clusters(60, noise=0.1), clusters(30, seed=1, noise=0.1)
    fit = fit_linear(train, validation, 3, HeadSettings(epochs=12, lr=0.05), seed=0)
    best = fit.history[fit.best_epoch - 1]
    ties = [line for line in fit.history if line.validation_accuracy == best.validation_accuracy == 1]
    assert len(ties) > 3
    assert best.validation_loss == min(line.validation_loss for line in ties)


def test_validation_rows_do_not_change_the_weights() -> None:
    train, config = clusters(60), HeadSettings(epochs=5)
    far = clusters(9, seed=2)
    one = fit_linear(train, clusters(30, seed=1), 3, config, seed=0)
    other = fit_linear(train, LabelledFeatures(far.x * 1e3, far.y), 3, config, seed=0)
    np.testing.assert_array_equal(one.last.weight, other.last.weight)
    np.testing.assert_array_equal(one.last.bias, other.last.bias)


def test_fit_linear_depends_on_its_seed_alone() -> None:
    train, config = clusters(60), HeadSettings(epochs=3, batch_size=4)
    torch.manual_seed(1)
    first = fit_linear(train, train, 3, config, seed=1)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = fit_linear(train, train, 3, config, seed=1)
    np.testing.assert_array_equal(first.last.weight, again.last.weight)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own random state
    other = fit_linear(train, train, 3, config, seed=2)
    assert not np.array_equal(first.last.weight, other.last.weight)


def test_batch_larger_than_the_data_equals_one_of_all_rows() -> None:
    train = clusters(20)
    large, exact = (
        fit_linear(train, train, 3, HeadSettings(epochs=4, batch_size=size), seed=0) for size in (4096, 20)
    )
    np.testing.assert_array_equal(large.last.weight, exact.last.weight)
    assert large.history == exact.history


def test_float16_features_give_the_head_of_their_float32_values() -> None:
    """Features as the cache returns them: float16, read-only."""
    x, y = clusters(60)
    stored = x.astype(np.float16)
    stored.flags.writeable = False
    for fit_head in (fit_linear, fit_logistic):
        one = fit_head(
            LabelledFeatures(stored, y), LabelledFeatures(stored, y), 3, HeadSettings(epochs=3), seed=0
        )
        wide = stored.astype(np.float32)
        other = fit_head(
            LabelledFeatures(wide, y), LabelledFeatures(wide, y), 3, HeadSettings(epochs=3), seed=0
        )
        np.testing.assert_array_equal(one.best.weight, other.best.weight)
        np.testing.assert_array_equal(one.best.bias, other.best.bias)


# ---------------------------------------------------------------- standardisation


@pytest.mark.parametrize("fit_head", [fit_linear, fit_logistic])
def test_folded_standardisation_gives_the_same_logits(fit_head: Callable[..., Fit]) -> None:
    """The head on raw features is the unfolded head on standardised ones."""
    train, test = clusters(80), clusters(30, seed=4)
    fit = fit_head(train, train, 3, HeadSettings(epochs=5, lr=0.02), seed=0)
    weight, bias = fit.best.weight.astype(np.float64), fit.best.bias.astype(np.float64)
    mean, scale = train[0].astype(np.float64).mean(0), train[0].astype(np.float64).std(0)
    unfolded = standardised(train[0], test[0])[1] @ (weight * scale).T + (bias + weight @ mean)
    np.testing.assert_allclose(head_of(fit.best).logits(test[0]), unfolded, rtol=0, atol=1e-4)


def test_feature_with_a_large_mean_is_used() -> None:
    """Some Transformers have such outliers: mean 20, spread 0.1, and all that matters is in the spread."""
    draw = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = np.stack([20 + 0.1 * (y * 2 - 1) + 0.05 * draw.normal(size=80), draw.normal(size=80)], 1)
    x = x.astype(np.float16).astype(np.float32)
    fit = fit_linear(
        LabelledFeatures(x, y), LabelledFeatures(x, y), 2, HeadSettings(epochs=30, lr=0.05), seed=0
    )
    exact = torch_reference(LabelledFeatures(x, y), HeadSettings(epochs=30, lr=0.05), 0, classes=2)[
        fit.best_epoch - 1
    ]
    expected = softmax(x.astype(np.float64) @ exact[0].T + exact[1])
    np.testing.assert_allclose(head_of(fit.best).predict_proba(x), expected, rtol=0, atol=1e-3)
    assert (expected.argmax(1) == y).mean() > 0.95


@pytest.mark.parametrize("fit_head", [fit_linear, fit_logistic])
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.7, 1e4, 1e-8])
def test_constant_features_get_no_weight(fit_head: Callable[..., Fit], constant: float) -> None:
    x, y = clusters(60)
    fixed = np.concatenate([x, np.full((60, 2), constant, np.float32)], axis=1)
    config = HeadSettings(epochs=4)
    with_fixed = fit_head(LabelledFeatures(fixed, y), LabelledFeatures(fixed, y), 3, config, seed=0)
    assert np.isfinite(with_fixed.best.weight).all()
    if fit_head is fit_logistic:  # what AdamW begins with depends on the width
        expected = head_of(
            fit_head(LabelledFeatures(x, y), LabelledFeatures(x, y), 3, config, seed=0).best
        ).predict_proba(x)
        np.testing.assert_allclose(head_of(with_fixed.best).predict_proba(fixed), expected, rtol=0, atol=1e-3)
    assert abs(with_fixed.best.weight[:, -2:]).max() < 1e-3


# ---------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_fit_logistic_equals_a_pipeline_of_scikit_learn(classes: int, penalty: float) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = clusters(120, classes=classes), clusters(50, classes=classes, seed=2)
    fit = fit_logistic(train, test, classes, HeadSettings(C=penalty), seed=0)
    assert (fit.history, fit.best_epoch) == ((), 0)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=5000, tol=1e-8))
    expected = reference.fit(*train).predict_proba(test[0])
    found = head_of(fit.best).predict_proba(test[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_fit_logistic_equals_logistic_regression_to_four_digits() -> None:
    from sklearn.linear_model import LogisticRegression

    train, test = clusters(120), clusters(50, seed=2)
    x, x_test = (part.astype(np.float32) for part in standardised(train[0], test[0]))
    reference = LogisticRegression(C=0.1, max_iter=1000).fit(x, train[1])
    found = head_of(fit_logistic(train, test, 3, HeadSettings(C=0.1), seed=0).best).predict_proba(test[0])
    np.testing.assert_allclose(found, reference.predict_proba(x_test), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("present", "classes"), [([0, 2], 3), ([1, 2, 4], 5), ([3, 1], 4)])
def test_fit_logistic_with_a_class_without_train_rows(present: list[int], classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = clusters(90, classes=len(present))
    y = np.array(sorted(present))[y]
    fit = fit_logistic(LabelledFeatures(x, y), LabelledFeatures(x, y), classes, HeadSettings(C=0.1), seed=0)
    assert fit.best.weight.shape == (classes, x.shape[1])
    found = head_of(fit.best).predict_proba(x)
    expected = np.zeros_like(found)
    scaled = standardised(x)[0].astype(np.float32)
    expected[:, sorted(present)] = (
        LogisticRegression(C=0.1, max_iter=1000).fit(scaled, y).predict_proba(scaled)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_fit_linear_with_a_class_without_train_rows() -> None:
    x, y = clusters(60, classes=2)
    fit = fit_linear(
        LabelledFeatures(x, y * 2), LabelledFeatures(x, y * 2), 4, HeadSettings(epochs=60, lr=0.05), seed=0
    )
    assert fit.best.weight.shape == (4, x.shape[1])
    assert set(head_of(fit.best).predict_proba(x).argmax(1)) <= {0, 2}


@pytest.mark.parametrize("fit_head", [fit_linear, fit_logistic])
def test_more_classes_than_rows_can_be_fitted(fit_head: Callable[..., Fit]) -> None:
    x, y = clusters(7, classes=7, width=20)
    fit = fit_head(
        LabelledFeatures(x[:4], y[:4]),
        LabelledFeatures(x[4:], y[4:]),
        7,
        HeadSettings(epochs=80, lr=0.05),
        seed=0,
    )
    probabilities = head_of(fit.last).predict_proba(x)  # no validation row is of a class of train
    assert probabilities.shape == (7, 7)
    assert np.isfinite(probabilities).all()
    assert (probabilities[:4].argmax(1) == y[:4]).all()


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("fit_head", [fit_linear, fit_logistic])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_nan_or_infinite_features_are_refused(fit_head: Callable[..., Fit], bad: float, split: str) -> None:
    data = {"train": clusters(30), "validation": clusters(20, seed=1)}
    data[split][0][7, 2] = data[split][0][11, 0] = bad
    with pytest.raises(HeadError, match=f"2 rows of the {split} features .* row 8"):
        fit_head(data["train"], data["validation"], 3, HeadSettings(epochs=2), seed=0)


@pytest.mark.parametrize("fit_head", [fit_linear, fit_logistic])
def test_single_class_is_refused(fit_head: Callable[..., Fit]) -> None:
    x, _ = clusters(30)
    with pytest.raises(HeadError, match="single class"):
        fit_head(LabelledFeatures(x, np.ones(30, np.int64)), clusters(10), 3, HeadSettings(), seed=0)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"epochs": -3}, "--epochs -3"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"lr": 0.0}, "--lr 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"C": -1.0}, "--C -1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("fit_head", [fit_linear, fit_logistic])
def test_settings_out_of_range_are_refused(
    fit_head: Callable[..., Fit], changes: dict[str, Any], flag: str
) -> None:
    with pytest.raises(HeadError, match=flag):
        fit_head(clusters(30), clusters(10), 3, HeadSettings(**changes), seed=0)


def test_divergence_is_an_error() -> None:
    with pytest.raises(HeadError, match="diverged") as caught:
        fit_linear(clusters(30), clusters(10), 3, HeadSettings(epochs=5, lr=1e10), seed=0)
    assert "--lr" in str(caught.value)
