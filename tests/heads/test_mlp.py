"""The head with one hidden layer, against torch's own modules, losses, AdamW and schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from featcache.errors import HeadError
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Epoch, Fit, schedule_factor
from featcache.heads.mlp import fit_mlp
from featcache.heads.probabilities import softmax
from featcache.heads.scorers import Mlp
from featcache.settings import HeadSettings
from tests.support.feature_rows import clusters, standardised, tagged
from tests.support.stock import one_thread


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


ARGUMENTS = {"seed", "class_weight", "on_epoch"}


def fitted(
    train: LabelledFeatures, validation: LabelledFeatures | None = None, classes: int = 3, **changes: Any
) -> Fit:
    arguments = {"seed": 0} | {name: changes.pop(name) for name in ARGUMENTS & changes.keys()}
    settings = {"epochs": 5, "lr": 3e-3, "weight_decay": 0.01, "batch_size": 16, "hidden": 8} | changes
    return fit_mlp(train, validation or train, classes, HeadSettings(**settings), **arguments)


def parts(scorer: Mlp) -> list[np.ndarray]:
    return [scorer.w1, scorer.b1, scorer.w2, scorer.b2]


def same(one: Mlp, other: Mlp) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def reference(
    train: LabelledFeatures,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    factor: Callable[[int], float] = lambda step: 1.0,
    *,
    outputs: int,
    hidden: int = 8,
    batch_size: int = 16,
    lr: float = 3e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
    epochs: int = 5,
) -> tuple[torch.nn.Module, list[list[np.ndarray]]]:
    """torch's modules, autograd, AdamW and LambdaLR; weights after each epoch, for standardised features."""
    x = torch.tensor(standardised(train[0])[0], dtype=torch.float32)
    y = torch.tensor(train[1])
    dice = torch.Generator().manual_seed(seed)
    width = x.shape[1]
    network = torch.nn.Sequential(
        torch.nn.Linear(width, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, outputs)
    )
    for parameter, inputs in zip(network.parameters(), (width, width, hidden, hidden), strict=True):
        parameter.data = (2 * torch.rand(parameter.shape, generator=dice) - 1) / inputs**0.5
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    after = []
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=dice).split(batch_size):
            optimizer.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimizer.step()
            scheduler.step()
        after.append([parameter.detach().numpy().copy() for parameter in network.parameters()])
    return network, after


def unfolded(scorer: Mlp, x: np.ndarray) -> list[np.ndarray]:
    """The scorer's weights for standardised features."""
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    return [scorer.w1 * scale, scorer.b1 + scorer.w1.astype(np.float64) @ mean, scorer.w2, scorer.b2]


def check_same(scorer: Mlp, x: np.ndarray, expected: list[np.ndarray]) -> None:
    for found, wanted in zip(unfolded(scorer, x), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 0.3, 4.0)])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_fit_mlp_equals_torch(smoothing: float, weights: tuple[float, ...] | None, batch_size: int) -> None:
    train, validation = clusters(60), clusters(30, seed=1)
    loss = torch.nn.CrossEntropyLoss(
        None if weights is None else torch.tensor(weights), label_smoothing=smoothing
    )
    network, after = reference(train, loss, outputs=3, batch_size=batch_size)
    class_weight = None if weights is None else np.array(weights)
    fit = fitted(
        train, validation, batch_size=batch_size, label_smoothing=smoothing, class_weight=class_weight
    )
    check_same(fit.last, train[0], after[-1])
    check_same(fit.best, train[0], after[fit.best_epoch - 1])
    x, y = standardised(train[0], validation[0])[1], validation[1]
    with torch.no_grad():
        logits = network(torch.tensor(x, dtype=torch.float32)).double()
    line = fit.history[-1]
    assert line.validation_loss == pytest.approx(log_loss(y, logits.softmax(1).numpy()), abs=1e-4)
    assert line.validation_accuracy == pytest.approx((logits.argmax(1).numpy() == y).mean())
    np.testing.assert_allclose(fit.last.logits(validation[0]), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 0.3, 4.0, 2.0)])
def test_fit_mlp_with_several_labels_equals_torch(
    smoothing: float, weights: tuple[float, ...] | None
) -> None:
    train, validation = tagged(60), tagged(30, seed=1)
    binary = torch.nn.BCEWithLogitsLoss(pos_weight=None if weights is None else torch.tensor(weights))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return binary(logits, torch.where(labels == 1, 1 - smoothing / 2, smoothing / 2))

    _, after = reference(train, loss, outputs=4)
    class_weight = None if weights is None else np.array(weights)
    fit = fitted(train, validation, 4, label_smoothing=smoothing, class_weight=class_weight)
    check_same(fit.last, train[0], after[-1])
    for (x, y), found_loss, found_accuracy in (
        (train, fit.history[-1].train_loss, fit.history[-1].train_accuracy),
        (validation, fit.history[-1].validation_loss, fit.history[-1].validation_accuracy),
    ):
        shares = 1 / (1 + np.exp(-fit.last.logits(x).astype(np.float64)))
        expected = -np.where(y == 1, np.log(shares), np.log(1 - shares)).mean()
        assert found_loss == pytest.approx(expected, abs=1e-6)
        assert found_accuracy == ((shares >= 0.5) == y).all(axis=1).mean()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_fit_mlp_applies_the_schedule_in_every_step(schedule: Any) -> None:
    train = clusters(50)
    total = 5 * 4  # 50 rows in batches of 16
    factor = lambda step: schedule_factor(min(step, total - 1), total, 0.3, schedule)  # noqa: E731
    _, after = reference(train, torch.nn.CrossEntropyLoss(), factor, outputs=3)
    check_same(fitted(train, warmup=0.3, schedule=schedule).last, train[0], after[-1])


# ---------------------------------------------------------------- best epoch, patience


def noisy(**changes: Any) -> Fit:
    train, validation = clusters(60, noise=3.0), clusters(30, seed=3, noise=3.0)
    return fitted(train, validation, lr=0.02, **({"epochs": 40} | changes))


def ranks(fit: Fit) -> list[tuple[float, float]]:
    return [(line.validation_accuracy, -line.validation_loss) for line in fit.history]


def test_best_epoch_is_chosen_by_validation_accuracy() -> None:
    fit = noisy()
    assert [line.epoch for line in fit.history] == list(range(1, 41))
    assert fit.best_epoch == 1 + ranks(fit).index(max(ranks(fit)))
    assert 1 < fit.best_epoch < 40  # else this tests nothing
    assert same(fit.best, noisy(epochs=fit.best_epoch).last)
    assert not same(fit.best, fit.last)


def test_best_epoch_of_equal_accuracies_has_the_lowest_loss() -> None:
    train, validation = clusters(60, noise=0.1), clusters(30, seed=1, noise=0.1)
    fit = fitted(train, validation, epochs=12, lr=0.05)
    best = fit.history[fit.best_epoch - 1]
    ties = [line for line in fit.history if line.validation_accuracy == best.validation_accuracy == 1]
    assert len(ties) > 3
    assert best.validation_loss == min(line.validation_loss for line in ties)


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_stops_training(patience: int) -> None:
    whole, fit = noisy(), noisy(patience=patience)
    assert len(fit.history) < 40
    assert fit.history == whole.history[: len(fit.history)]
    since = [
        number - (1 + ranks(fit).index(max(ranks(fit)[:number]))) for number in range(1, len(fit.history) + 1)
    ]
    assert since[-1] == patience
    assert all(waited < patience for waited in since[:-1])
    assert same(fit.last, noisy(epochs=len(fit.history)).last)


def test_on_epoch_receives_every_epoch() -> None:
    heard: list[Epoch] = []
    fit = fitted(clusters(40), on_epoch=heard.append)
    assert tuple(heard) == fit.history
    assert len(heard) == 5


def test_validation_rows_do_not_change_the_weights() -> None:
    train = clusters(60)
    other = LabelledFeatures(clusters(9, seed=2).x * 1e3, clusters(9, seed=2).y)
    assert same(fitted(train, clusters(30, seed=1)).last, fitted(train, other).last)


# ---------------------------------------------------------------- dropout, seeds


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_fit_mlp_depends_on_its_seed_alone(dropout: float) -> None:
    train = clusters(60)
    torch.manual_seed(1)
    first = fitted(train, dropout=dropout, seed=1)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = fitted(train, dropout=dropout, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own random state
    assert same(first.last, again.last)
    assert first.history == again.history
    assert not same(first.last, fitted(train, dropout=dropout, seed=2).last)


def test_dropout_omits_its_share_and_keeps_the_mean() -> None:
    from featcache.heads.mlp import _Network

    x, y = clusters(200)
    network = _Network(LabelledFeatures(x, y), 3, 64, 0)
    network.w2 = torch.eye(64)  # what comes out is the hidden units
    network.b2 = torch.zeros(64)
    rows = torch.tensor(standardised(x)[0], dtype=torch.float32)
    plain, dropped = network.forward(rows, 0.0).detach(), network.forward(rows, 0.3).detach()
    alive = plain > 0
    kept = dropped[alive] != 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.03)
    torch.testing.assert_close(dropped[alive][kept], plain[alive][kept] / 0.7)


def test_history_is_scored_without_dropout() -> None:
    train = clusters(60)
    fit = fitted(train, dropout=0.5)
    expected = log_loss(train[1], softmax(fit.last.logits(train[0])))
    assert fit.history[-1].train_loss == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------- what is trained


def test_fit_mlp_learns_exclusive_or() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 2)).astype(np.float32)
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(np.int64)
    fit = fitted(
        LabelledFeatures(x[:300], y[:300]),
        LabelledFeatures(x[300:], y[300:]),
        2,
        epochs=40,
        lr=0.01,
        hidden=16,
    )
    assert fit.history[fit.best_epoch - 1].validation_accuracy > 0.93


def test_float16_features_give_the_head_of_their_float32_values(tmp_path: Path) -> None:
    x, y = clusters(60)
    x.astype(np.float16).tofile(tmp_path / "x")
    stored = np.memmap(tmp_path / "x", np.float16, "r", shape=x.shape)
    assert same(
        fitted(LabelledFeatures(stored, y)).last,
        fitted(LabelledFeatures(np.asarray(stored, np.float32), y)).last,
    )


def test_train_rows_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    import featcache.heads.features

    monkeypatch.setattr(featcache.heads.features, "NUMBERS_AT_ONCE", 1 << 14)
    x, y = clusters(20_000, width=128)
    x.astype(np.float16).tofile(tmp_path / "x")
    stored = np.memmap(tmp_path / "x", np.float16, "r", shape=x.shape)
    fitted(LabelledFeatures(stored[:50], y[:50]))
    tracemalloc.start()
    try:
        fitted(LabelledFeatures(stored, y), LabelledFeatures(stored[:50], y[:50]), epochs=1, batch_size=2000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < stored.size  # half of them, in float16


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e4])
def test_constant_features_do_not_change_the_logits(constant: float) -> None:
    x, y = clusters(60)
    fixed = np.concatenate([x, np.full((60, 2), constant, np.float32)], axis=1)
    _, after = reference(LabelledFeatures(fixed, y), torch.nn.CrossEntropyLoss(), outputs=3)
    w1, b1, w2, b2 = after[-1]
    expected = np.maximum(standardised(fixed)[0] @ w1.T + b1, 0) @ w2.T + b2
    np.testing.assert_allclose(
        fitted(LabelledFeatures(fixed, y)).last.logits(fixed), expected, rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_without_train_rows_is_never_predicted(smoothing: float) -> None:
    x, y = clusters(60, classes=2)
    weights = np.array([9, 1, 9, 2.0])
    fit = fitted(
        LabelledFeatures(x, y * 2 + 1),
        LabelledFeatures(x, y),
        4,
        label_smoothing=smoothing,
        class_weight=weights,
    )
    plain = fitted(
        LabelledFeatures(x, y),
        LabelledFeatures(x, y),
        2,
        label_smoothing=smoothing,
        class_weight=weights[[1, 3]],
    )
    wild = 50 * np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    found = fit.last.logits(wild)
    np.testing.assert_array_equal(found[:, [1, 3]], plain.last.logits(wild))
    assert (found[:, [0, 2]] == -1e4).all()


def test_labels_of_no_row_or_all_rows_get_constant_logits() -> None:
    x, y = tagged(60)
    widened = np.insert(y, [0, 2], np.array([0, 1], np.uint8), axis=1)  # columns 0 and 3
    found, plain = fitted(LabelledFeatures(x, widened), classes=6), fitted(LabelledFeatures(x, y), classes=4)
    logits = found.last.logits(x)
    np.testing.assert_array_equal(np.delete(logits, [0, 3], axis=1), plain.last.logits(x))
    assert (logits[:, 0] == -1e4).all()
    assert (logits[:, 3] == 1e4).all()
    assert found.history[-1].train_accuracy == plain.history[-1].train_accuracy


def test_more_classes_than_rows_can_be_fitted() -> None:
    x, y = clusters(7, classes=7, width=20)
    fit = fitted(LabelledFeatures(x[:4], y[:4]), LabelledFeatures(x[4:], y[4:]), 7, epochs=60, lr=0.02)
    assert (fit.last.logits(x[:4]).argmax(1) == y[:4]).all()
    assert fit.history[-1].validation_loss == pytest.approx(-np.log(1e-15))  # classes never seen: held there


@pytest.mark.parametrize(("limit", "threads"), [(0, 2), (1 << 25, 1)])
def test_small_steps_take_one_thread(limit: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import featcache.heads.mlp

    monkeypatch.setattr(featcache.heads.mlp, "SMALL_STEP", limit)
    used: set[int] = set()
    forward = featcache.heads.mlp._Network.forward

    def watched(*args: Any) -> torch.Tensor:
        used.add(torch.get_num_threads())
        return forward(*args)

    monkeypatch.setattr(featcache.heads.mlp._Network, "forward", watched)
    torch.set_num_threads(2)
    try:
        fitted(clusters(30))
        assert (used, torch.get_num_threads()) == ({threads}, 2)
        with pytest.raises(HeadError, match="diverged"):
            fitted(clusters(30), lr=1e30)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_or_infinite_features_are_refused(split: str, bad: float) -> None:
    data = {"train": clusters(30), "validation": clusters(20, seed=1)}
    data[split][0][7, 2] = data[split][0][11, 0] = bad
    with pytest.raises(HeadError, match=f"2 rows of the {split} features .* row 8"):
        fitted(data["train"], data["validation"])


def test_single_class_is_refused() -> None:
    with pytest.raises(HeadError, match="single class"):
        fitted(LabelledFeatures(clusters(30)[0], np.ones(30, np.int64)), clusters(10))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"hidden": 0}, "--hidden 0"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"patience": 0}, "--patience 0"),
        ({"lr": 0.0}, "--lr 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1"),
        ({"dropout": 1.0}, "--dropout 1"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1"),
        ({"warmup": 1.5}, "--warmup 1.5"),
        ({"schedule": "steps"}, "--schedule: 'steps'"),
    ],
    ids=str,
)
def test_fit_mlp_refuses_settings_out_of_range(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(HeadError, match=flag):
        fitted(clusters(30), **changes)


@pytest.mark.parametrize("weights", [(1, 1), (1, 0, 1), (1, -1, 1), (1, np.nan, 1), ((1, 1, 1),)], ids=str)
def test_fit_mlp_refuses_class_weights_out_of_range(weights: Any) -> None:
    with pytest.raises(HeadError, match="class weights must be 3 numbers"):
        fitted(clusters(30), class_weight=np.array(weights, np.float64))


@pytest.mark.parametrize("make", [clusters, tagged], ids=["one label", "several"])
def test_divergence_is_an_error(make: Callable[..., LabelledFeatures]) -> None:
    with pytest.raises(HeadError, match="diverged in epoch 1") as caught:
        fitted(make(30), classes=4, lr=1e30)
    assert "--lr" in str(caught.value)
