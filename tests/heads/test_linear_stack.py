"""Many heads at once against each of them alone, and against torch's own layer, losses and AdamW."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import HeadError
from featcache.heads import features, minibatches
from featcache.heads.features import LabelledFeatures, Standard
from featcache.heads.fit import Member, schedule_factor
from featcache.heads.linear_stack import fit_stack, initial_weights
from featcache.heads.stack_loss import class_weights
from featcache.settings import HeadSettings
from tests.support.stock import one_thread

Views = dict[str, LabelledFeatures]


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def rows(count: int, seed: int, *, classes: int = 3) -> Views:
    """Two views of different width, unevenly frequent classes that overlap."""
    centres = np.random.default_rng(7).normal(size=(classes, 9))
    draw = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), draw.choice(classes, count - classes, p=[0.6, 0.3, 0.1])])
    x = centres[y] + 1.5 * draw.normal(size=(count, 9))
    views = {"a": (3 * x + 1).astype(np.float16), "b": x[:, :5].astype(np.float32)}
    return {view: LabelledFeatures(x, y) for view, x in views.items()}


def several(count: int, seed: int) -> Views:
    """Multi-label rows: labels of different frequency that depend on the features."""
    views = rows(count, seed)
    noise = np.random.default_rng(seed + 50).normal(size=(count, 3))
    y = (views["b"].x[:, :3] + noise > [0.0, 0.8, -0.5]).astype(np.uint8)
    return {view: LabelledFeatures(x, y) for view, (x, _) in views.items()}


SEED = 5
MEMBERS = [
    Member("a"),
    Member("b", lr=0.03, weight_decay=0.2, seed=3),
    Member("a", lr=0.1, label_smoothing=0.2, class_weight="balanced", seed=1),
    Member("b", lr=2e-3, weight_decay=0.0, class_weight="balanced", seed=2),
    Member("a", lr=0.01, label_smoothing=0.1, seed=4),
]


def torchs(views: Views, member: Member, shared: HeadSettings) -> torch.nn.Linear:
    """The layer for standardised features after the last epoch, by torch's own autograd and optimizer."""
    stored, y = views[member.view]
    x = torch.from_numpy(Standard.of(stored.astype(np.float32))(stored))
    layer = torch.nn.Linear(x.shape[1], 3)
    first = initial_weights(member, 3, x.shape[1])
    layer.load_state_dict({"weight": first[:, :-1], "bias": first[:, -1]})
    weight = class_weights(y, 3, member.class_weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=member.lr, weight_decay=member.weight_decay)
    order = torch.Generator().manual_seed(SEED)
    steps, total = 0, shared.epochs * -(-len(y) // shared.batch_size)
    smoothing = member.label_smoothing
    for _ in range(shared.epochs):
        for batch in torch.randperm(len(y), generator=order).split(shared.batch_size):
            optimizer.param_groups[0]["lr"] = member.lr * schedule_factor(
                steps, total, shared.warmup, shared.schedule
            )
            optimizer.zero_grad()
            if y.ndim == 1:
                target = torch.from_numpy(y)[batch]
                loss = torch.nn.functional.cross_entropy(
                    layer(x[batch]), target, weight=weight, label_smoothing=smoothing
                )
            else:
                target = torch.from_numpy(y)[batch].float() * (1 - smoothing) + smoothing / 2
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    layer(x[batch]), target, pos_weight=weight
                )
            loss.backward()
            optimizer.step()
            steps += 1
    return layer


def assert_is(found: Any, layer: torch.nn.Linear, stored: np.ndarray) -> None:
    """The same weights but for the folded standardisation."""
    standard = Standard.of(stored.astype(np.float32))
    weight = found.weight * standard.scale
    np.testing.assert_allclose(weight, layer.weight.detach().numpy(), rtol=0, atol=1e-5)
    bias = found.bias + found.weight.astype(np.float64) @ standard.mean
    np.testing.assert_allclose(bias, layer.bias.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [rows, several])
@pytest.mark.parametrize(
    "shared",
    [
        HeadSettings(epochs=6, batch_size=16),
        HeadSettings(epochs=6, batch_size=7, warmup=0.2, schedule="linear"),
        HeadSettings(epochs=6, batch_size=1000, schedule="cosine"),
    ],
    ids=lambda shared: f"{shared.batch_size}-{shared.schedule}",
)
def test_fit_stack_equals_torch(make: Any, shared: HeadSettings) -> None:
    train, validation = make(90, 0), make(40, 1)
    fits = fit_stack(train, validation, 3, MEMBERS, shared, seed=SEED)
    for member, fit in zip(MEMBERS, fits, strict=True):
        assert_is(fit.last, torchs(train, member, shared), train[member.view].x)


@pytest.mark.parametrize("make", [rows, several])
def test_heads_of_joined_views_equal_torch_on_the_matrix_of_both(make: Any) -> None:
    train, validation = make(90, 0), make(40, 1)
    joined = {}
    for name in ("a,b", "b,a"):
        both = np.concatenate([train[view].x.astype(np.float32) for view in name.split(",")], axis=1)
        joined[name] = LabelledFeatures(both, train["a"].y)
    members = [
        *MEMBERS,
        Member("a,b", lr=0.02, weight_decay=0.1, seed=6),
        Member("b,a", lr=0.05, class_weight="balanced", label_smoothing=0.1, seed=7),
        Member("a,b", seed=None),
    ]
    shared = HeadSettings(epochs=5, batch_size=16)
    fits = fit_stack(train, validation, 3, members, shared, seed=SEED)
    for member, fit in zip(members, fits, strict=True):
        views = train | joined
        assert_is(fit.last, torchs(views, member, shared), views[member.view].x)


@pytest.mark.parametrize("make", [rows, several])
def test_head_of_a_stack_equals_the_head_alone(make: Any) -> None:
    train, validation = make(80, 0), make(30, 1)
    shared = HeadSettings(epochs=8, batch_size=8)
    together = fit_stack(train, validation, 3, MEMBERS, shared)
    for member, fit in zip(MEMBERS, together, strict=True):
        alone = fit_stack(train, validation, 3, [member], shared)[0]
        x = train[member.view].x
        np.testing.assert_allclose(fit.best.logits(x), alone.best.logits(x), rtol=0, atol=2e-5)
        assert fit.best_epoch == alone.best_epoch
        for one, other in zip(fit.history, alone.history, strict=True):
            assert one.validation_loss == pytest.approx(other.validation_loss, abs=1e-5)
            assert one.train_loss == pytest.approx(other.train_loss, abs=1e-5)


def test_fit_stack_of_streamed_rows_equals_that_of_kept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standardised chunk by chunk from the map, in many chunks, instead of at once."""
    train, validation = rows(200, 0), rows(60, 1)
    shared = HeadSettings(epochs=3, batch_size=8)
    kept = fit_stack(train, validation, 3, MEMBERS, shared)
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    monkeypatch.setattr(minibatches, "NUMBERS_AT_ONCE", 16 * 24)
    streamed = fit_stack(train, validation, 3, MEMBERS, shared)
    for one, other in zip(kept, streamed, strict=True):
        np.testing.assert_allclose(one.last.weight, other.last.weight, rtol=0, atol=1e-5)
        for a, b in zip(one.history, other.history, strict=True):
            assert a.train_loss == pytest.approx(b.train_loss, abs=1e-5)
            assert a.train_accuracy == pytest.approx(b.train_accuracy)


def test_head_that_stops_early_keeps_its_history() -> None:
    train, validation = rows(60, 0), rows(30, 3)
    members = [Member("a", lr=0.3), Member("a", lr=1e-4)]
    patient = fit_stack(train, validation, 3, members, HeadSettings(epochs=60, patience=4))
    endless = fit_stack(train, validation, 3, members, HeadSettings(epochs=60))
    stopped = patient[0]
    assert len(stopped.history) == stopped.best_epoch + 4 < 60
    assert stopped.history == endless[0].history[: len(stopped.history)]
    assert len(patient[1].history) > len(stopped.history)


def test_diverged_head_does_not_change_the_others() -> None:
    train = rows(60, 0)
    members = [Member("a", lr=1e12, weight_decay=1.0), Member("a")]
    wild, fine = fit_stack(train, train, 3, members, HeadSettings(epochs=9))
    alone = fit_stack(train, train, 3, members[1:], HeadSettings(epochs=9))[0]
    assert wild.about and wild.about["diverged_in_epoch"] > 1
    np.testing.assert_allclose(fine.last.weight, alone.last.weight, rtol=0, atol=1e-6)
    assert fine.about is None


def test_seed_of_a_member_sets_its_first_weights_only() -> None:
    train = rows(60, 0)
    members = [Member("a", seed=0), Member("a", seed=1), Member("a", seed=0)]
    one, other, again = fit_stack(train, train, 3, members, HeadSettings(epochs=2))
    np.testing.assert_array_equal(one.last.weight, again.last.weight)
    assert not np.allclose(one.last.weight, other.last.weight, atol=1e-3)


def test_fit_stack_restores_the_number_of_threads() -> None:
    train = rows(60, 0)
    torch.set_num_threads(2)
    try:
        fit_stack(train, train, 3, [Member("a")], HeadSettings(epochs=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("member", "shared", "words"),
    [
        (Member("a", lr=-1.0), HeadSettings(), "--lr -1"),
        (Member("a", label_smoothing=1.0), HeadSettings(), "--label-smoothing 1"),
        (Member("a"), HeadSettings(epochs=0), "--epochs 0"),
        (Member("a"), HeadSettings(batch_size=0), "--batch-size 0"),
    ],
)
def test_fit_stack_refuses_settings_out_of_range(member: Member, shared: HeadSettings, words: str) -> None:
    train = rows(30, 0)
    with pytest.raises(HeadError, match=words):
        fit_stack(train, train, 3, [member], shared)


def test_fit_stack_refuses_no_members() -> None:
    train = rows(30, 0)
    with pytest.raises(HeadError, match="no heads"):
        fit_stack(train, train, 3, [], HeadSettings())


def test_features_leave_the_memory_with_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep fits stack after stack: on a GPU there may be no room for the features of two."""
    made, of = list[weakref.ref[minibatches.PaddedFeatures]](), minibatches.PaddedFeatures.of

    def noted(*args: Any) -> minibatches.PaddedFeatures:
        found = of(*args)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(minibatches.PaddedFeatures, "of", noted)
    gc.collect()
    gc.disable()
    try:
        fit_stack(rows(40, 0), rows(20, 1), 3, MEMBERS[:2], HeadSettings(epochs=2, batch_size=8))
        assert made and all(each() is None for each in made)
    finally:
        gc.enable()
