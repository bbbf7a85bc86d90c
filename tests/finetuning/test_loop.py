"""The training loop: gradients, losses and rates, checkpoints, early ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from featcache.backbone.packing import StateBatch
from featcache.errors import HeadError
from featcache.finetuning.checkpoint import CheckpointFolder
from featcache.finetuning.loop import Tuner
from featcache.finetuning.recipe import Recipe
from featcache.finetuning.suffix import Suffix
from featcache.finetuning.tuning import TrainingStep
from tests.support.tuning import TextInputs, batch_of, suffix_of, tuner_of

QUICK = Recipe(epochs=2, lr=1e-3, head_lr=1e-2, batch_size=8)


TEXTS = 22
LENGTHS = tuple(np.random.default_rng(5).integers(1, 40, TEXTS).tolist())
LABELS = np.arange(TEXTS) % 3


def training(model: Path, recipe: Recipe = QUICK, labels: np.ndarray = LABELS, **options: Any) -> Tuner:
    """The highest block of a tiny backbone, trained on random texts."""
    suffix = suffix_of(model, "top-blocks:1", dropout=recipe.dropout)
    texts = TextInputs(batch_of(LENGTHS), model, 2)
    return tuner_of(suffix, texts, labels, recipe, **{"seed": 3} | options)


def weights_of(tuner: Tuner) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tuner.named.items()}


def test_the_token_budget_does_not_change_the_result(tiny: Callable[[str], Path]) -> None:
    found = []
    for budget in (1, 60, 10_000):
        tuner = training(tiny("bert"), budget=budget)
        tuner.run()
        found.append(weights_of(tuner))
    for name, reference in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], reference, rtol=1e-3, atol=1e-5)


def test_every_epoch_takes_every_text_once_in_another_order(tiny: Callable[[str], Path]) -> None:
    tuner = training(tiny("bert"))
    epochs = [np.concatenate([tuner._rows(3 * epoch + step) for step in range(3)]) for epoch in range(2)]
    assert all(sorted(rows.tolist()) == list(range(TEXTS)) for rows in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert tuner.steps == 6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_seed_gives_the_same_weights(tiny: Callable[[str], Path], dropout: float) -> None:
    recipe = dataclasses.replace(QUICK, dropout=dropout)
    one, two, other = (training(tiny("bert"), recipe, seed=seed) for seed in (3, 3, 4))
    for tuner in (one, two, other):
        tuner.run()
    assert all(torch.equal(value, weights_of(two)[name]) for name, value in weights_of(one).items())
    assert not all(torch.equal(value, weights_of(other)[name]) for name, value in weights_of(one).items())


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("dropout", "after"),
    [
        *[(0.0, 6), (0.3, 5)],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in ((0.0, 1), (0.3, 3))],
    ],
)
def test_run_continues_a_killed_training_with_the_same_result(
    tiny: Callable[[str], Path], tmp_path: Path, after: int, dropout: float
) -> None:
    recipe = dataclasses.replace(QUICK, dropout=dropout)
    whole = training(tiny("bert"), recipe)
    reference = whole.run()

    def kill(step: TrainingStep) -> None:
        if step.step == after + 1 and not step.line and not step.text:
            raise Killed

    def end(step: TrainingStep) -> None:
        if step.line and step.step == whole.steps:
            raise Killed

    def kept() -> dict[str, Any]:
        return {"checkpoints": CheckpointFolder(tmp_path / "point", every=0.0)}

    told: list[str] = []
    with pytest.raises(Killed):
        training(tiny("bert"), recipe, on_step=end if after == 6 else kill, **kept()).run()
    resumed = training(tiny("bert"), recipe, on_step=lambda step: told.append(step.text), **kept())
    found = resumed.run(resume=True)
    assert f"going on from step {after} of 6" in told
    assert found.state.history == reference.state.history
    assert found.state.best_epoch == reference.state.best_epoch
    assert found.state.curve == reference.state.curve
    for name, value in weights_of(whole).items():
        assert torch.equal(weights_of(resumed)[name], value), name
    assert all(torch.equal(found.best.part[name], value) for name, value in reference.best.part.items())
    assert all(torch.equal(found.best.head[name], value) for name, value in reference.best.head.items())


@pytest.mark.parametrize("odd", ["step", "tensors", "state"])
def test_a_checkpoint_that_does_not_fit_is_refused(
    tiny: Callable[[str], Path], tmp_path: Path, odd: str
) -> None:
    checkpoints = CheckpointFolder(tmp_path / "point", every=0.0)
    training(tiny("bert"), checkpoints=checkpoints).run()
    found = checkpoints.load()
    assert found
    state = dict(found.state) | {"step": {"step": 10**9, "tensors": 1, "state": "x"}[odd]}
    checkpoints.save({} if odd == "tensors" else found.tensors, state)
    again = training(tiny("bert"), checkpoints=CheckpointFolder(tmp_path / "point"))
    with pytest.raises(HeadError, match="does not fit this training") as refused:
        again.run(resume=True)
    assert "point" in refused.value.what and "starts again" in str(refused.value.hint)


def test_run_without_resume_starts_from_the_beginning(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    training(tiny("bert"), checkpoints=CheckpointFolder(tmp_path / "point")).run()
    told: list[str] = []
    checkpoints = CheckpointFolder(tmp_path / "point")
    again = training(tiny("bert"), checkpoints=checkpoints, on_step=lambda step: told.append(step.text))
    assert again.run().state.step == 6
    assert not any("going on" in text for text in told)


@pytest.mark.parametrize(
    ("smoothing", "weight"), [(0.0, "none"), (0.2, "none"), (0.0, "balanced"), (0.1, "balanced")]
)
def test_gradients_of_the_mean_cross_entropy_of_torch(
    tiny: Callable[[str], Path], smoothing: float, weight: str
) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 12 + [1] * 7 + [2] * 3)
    recipe = dataclasses.replace(QUICK, label_smoothing=smoothing, class_weight=weight)
    tuner = training(tiny("bert"), recipe, labels, budget=30)
    loss, right = tuner._gradients(np.arange(TEXTS))
    with torch.no_grad():
        logits = tuner.head(torch.from_numpy(tuner.features(tuner.data.train.texts)))
    balanced = torch.tensor(
        compute_class_weight("balanced", classes=np.arange(3), y=labels), dtype=torch.float32
    )
    expected = functional.cross_entropy(
        logits, torch.from_numpy(labels), label_smoothing=smoothing,
        weight=balanced if weight == "balanced" else None,
    )  # fmt: skip
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert right == int((logits.argmax(1).numpy() == labels).sum())


def test_gradients_of_the_binary_cross_entropy_of_torch(tiny: Callable[[str], Path]) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (TEXTS, 4)).astype(np.uint8)
    tuner = training(tiny("bert"), QUICK, labels, budget=30)
    loss, right = tuner._gradients(np.arange(TEXTS))
    with torch.no_grad():
        logits = tuner.head(torch.from_numpy(tuner.features(tuner.data.train.texts)))
    expected = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels).float())
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert right == int(((logits.numpy() > 0) == labels).all(1).sum())


def test_learning_rates_fall_from_block_to_block(tiny: Callable[[str], Path]) -> None:
    suffix = suffix_of(tiny("bert"), "top-blocks:3")
    texts = TextInputs(batch_of(LENGTHS), tiny("bert"), 0)
    recipe = Recipe(lr=0.1, head_lr=0.7, layer_decay=0.5, weight_decay=0.02)
    tuner = tuner_of(suffix, texts, LABELS, recipe)
    told = tuner.optimizer.rates
    assert told["encoder.layer.2.output.dense.weight"] == (0.1, 0.02)
    assert told["encoder.layer.1.output.dense.weight"] == (0.05, 0.02)
    assert told["encoder.layer.0.output.dense.bias"] == (0.025, 0.0)
    assert told["encoder.layer.0.output.LayerNorm.weight"] == (0.025, 0.0)
    assert told["head.weight"] == (0.7, 0.02) and told["head.bias"] == (0.7, 0.0)


def test_early_stopping_keeps_the_best_weights(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(QUICK, epochs=9, patience=2)
    tuner = training(tiny("bert"), recipe)
    accuracies = iter([0.5, 0.8, 0.8, 0.7, 0.9])
    original = Tuner._is_best

    def scripted(self: Tuner, line: Any) -> bool:
        line = dataclasses.replace(line, validation_accuracy=next(accuracies), validation_loss=1.0)
        self.state.history[-1] = line
        return original(self, line)

    monkeypatch.setattr(Tuner, "_is_best", scripted)
    kept: dict[int, torch.Tensor] = {}
    tuner.on_step = lambda step: (
        kept.update({step.line.epoch: tuner.head.weight.detach().clone()}) if step.line else None
    )
    found = tuner.run()
    assert found.state.best_epoch == 2 and len(found.state.history) == 4
    assert "no better validation score in 2 epochs" in found.stopped
    assert torch.equal(found.best.head["weight"], kept[2])
    assert torch.equal(found.last.head["weight"], kept[4])


def test_run_fails_if_the_loss_is_nan_in_the_first_epoch(tiny: Callable[[str], Path]) -> None:
    tuner = training(tiny("bert"), dataclasses.replace(QUICK, lr=1e30, clip=0.0, warmup=0.0))
    with pytest.raises(HeadError, match=r"NaN or infinite in step \d of 6, before the first epoch"):
        tuner.run()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_run_keeps_the_best_epoch_if_the_loss_is_nan_later(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    original = Tuner._gradients

    def failing(self: Tuner, rows: np.ndarray) -> tuple[float, float]:
        loss, right = original(self, rows)
        if self.state.step < 4:
            return loss, right
        if where == "gradient":
            assert self.head.weight.grad is not None
            self.head.weight.grad[0, 0] = math.inf
            return loss, right
        return math.nan, right

    monkeypatch.setattr(Tuner, "_gradients", failing)
    told: list[str] = []
    tuner = training(tiny("bert"), on_step=lambda step: told.append(step.text))
    found = tuner.run()
    assert found.state.best_epoch == 1 and len(found.state.history) == 1 and found.state.step == 4
    assert "step 5 of 6" in found.stopped and any("the best epoch is kept" in text for text in told)
    assert all(torch.isfinite(value).all() for value in weights_of(tuner).values())


def test_run_continues_with_smaller_batches_if_memory_runs_out(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = training(tiny("bert"), budget=1000)
    reference.run()
    original = Suffix.pooled

    def little(self: Suffix, batch: StateBatch, pooling: str) -> torch.Tensor:
        if batch.lengths.sum() > 45:
            raise MemoryError
        return original(self, batch, pooling)

    monkeypatch.setattr(Suffix, "pooled", little)
    told: list[str] = []
    tuner = training(tiny("bert"), budget=1000, on_step=lambda step: told.append(step.text))
    found = tuner.run()
    assert found.batch_tokens <= 90 and any("out of memory" in text for text in told)
    for name, value in weights_of(reference).items():
        torch.testing.assert_close(weights_of(tuner)[name], value, rtol=1e-3, atol=1e-5)
