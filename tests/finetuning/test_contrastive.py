"""The contrastive step: its loss, its texts, its gradients in parts, and the head at its end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import featcache
from featcache.errors import UsageError
from featcache.finetuning.checkpoint import CheckpointFolder
from featcache.finetuning.contrastive import TEMPERATURE, ContrastiveTuner, contrastive_loss
from featcache.finetuning.recipe import CONTRASTIVE, Recipe, build_recipe, load_recipe
from featcache.finetuning.tuning import LabelledTexts, TuningData
from featcache.heads.closed_form import ridge
from tests.support.cli_tools import Cli
from tests.support.tuning import TextInputs, batch_of, pooler_of, suffix_of

TEXTS = 22
LENGTHS = tuple(np.random.default_rng(5).integers(1, 40, TEXTS).tolist())
LABELS = np.arange(TEXTS) % 3
QUICK = dataclasses.replace(build_recipe({"objective": CONTRASTIVE}), steps=4, lr=1e-3)


def training(
    model: Path, recipe: Recipe = QUICK, labels: np.ndarray = LABELS, **options: Any
) -> ContrastiveTuner:
    """The highest block of a tiny backbone, trained on random texts."""
    suffix = suffix_of(model, "top-blocks:1")
    texts = LabelledTexts(TextInputs(batch_of(LENGTHS), model, 2), labels)
    data = TuningData(texts, texts, 3)
    options = {"seed": 3, "budget": 100} | options
    return ContrastiveTuner(suffix, pooler_of(suffix, "mean"), data, recipe, **options)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 1000))
def test_the_loss_is_that_of_the_paper(labels: list[int], seed: int) -> None:
    y, x = np.array(labels), np.random.default_rng(seed).normal(size=(len(labels), 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    losses = []
    for row in range(len(y)):
        others = [other for other in range(len(y)) if other != row]
        own = [other for other in others if y[other] == y[row]]
        if own:
            total = sum(np.exp(unit[row] @ unit[other] / TEMPERATURE) for other in others)
            shares = [np.log(np.exp(unit[row] @ unit[other] / TEMPERATURE) / total) for other in own]
            losses.append(-np.mean(shares))
    found = float(contrastive_loss(torch.from_numpy(x), torch.from_numpy(y)))
    assert found == pytest.approx(np.mean(losses) if losses else 0.0, abs=1e-4)
    longer = torch.from_numpy(x * np.linspace(1, 9, len(y))[:, None])
    assert float(contrastive_loss(longer, torch.from_numpy(y))) == pytest.approx(found, abs=1e-4)


def test_the_token_budget_does_not_change_the_result(tiny: Callable[[str], Path]) -> None:
    found = []
    for budget in (10_000, 60, 1):
        tuner = training(tiny("bert"), budget=budget)
        tuner.run()
        weights = {name: value.detach().clone() for name, value in tuner.named.items()}
        found.append((tuner.state.curve, weights))
    for curve, weights in found[1:]:
        np.testing.assert_allclose(curve, found[0][0], rtol=1e-4)
        for name, value in weights.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=1e-3, atol=1e-4)


def test_memory_that_runs_out_halves_the_budget(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training(tiny("bert"), budget=10_000)
    whole.run()
    said: list[str] = []
    tuner = training(tiny("bert"), budget=10_000, on_step=lambda step: said.append(step.text))
    pooled = tuner.suffix.pooled

    def small_memory(batch: Any, pooler: Any) -> torch.Tensor:
        if batch.lengths.sum() > 150:
            raise MemoryError
        return pooled(batch, pooler)

    monkeypatch.setattr(tuner.suffix, "pooled", small_memory)
    tuner.run()
    assert any("out of memory" in text for text in said)
    np.testing.assert_allclose(tuner.state.curve, whole.state.curve, rtol=1e-4)


def test_the_loss_falls_and_the_head_is_ridge_on_the_new_vectors(tiny: Callable[[str], Path]) -> None:
    tuner = training(tiny("bert"), dataclasses.replace(QUICK, steps=30))
    before = tuner.features(tuner.data.train.texts)
    tuned = tuner.run()
    losses = [loss for _, loss in tuned.state.curve]
    assert losses[-1] < losses[0] - 0.1
    x = tuner.features(tuner.data.train.texts, tuned.best)
    assert np.abs(x - before).max() > 0.01
    expected = ridge(x, LABELS, 3, alpha=float(x.shape[1]))
    np.testing.assert_allclose(tuned.best.head["weight"].numpy(), expected.weight, atol=1e-5)
    (line,) = tuned.state.history
    right = (expected.logits(x).argmax(axis=1) == LABELS).mean()
    assert line.validation_accuracy == pytest.approx(right) == line.train_accuracy
    assert line.train_loss == pytest.approx(np.mean(losses), abs=1e-4)


def test_a_step_takes_as_many_texts_of_each_class(tiny: Callable[[str], Path]) -> None:
    labels = np.array([0] * 16 + [1] * 4 + [2] * 2)
    tuner = training(tiny("bert"), dataclasses.replace(QUICK, batch_size=9), labels)
    drawn = [tuner._rows(step) for step in range(4)]
    for rows in drawn:
        assert np.bincount(labels[rows]).tolist() == [3, 3, 2] and len(set(rows)) == len(rows)
    assert sorted(drawn[0]) != sorted(drawn[1])
    few = training(tiny("bert"), dataclasses.replace(QUICK, batch_size=4), labels)
    for step in range(4):
        assert np.count_nonzero(np.bincount(labels[few._rows(step)])) == 2
    assert training(tiny("bert"))._rows(0).tolist() == list(range(TEXTS))


class Killed(BaseException):
    pass


def test_a_killed_training_is_continued_with_the_same_result(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = training(tiny("bert")).run()
    folder = CheckpointFolder(tmp_path / "checkpoint")
    monkeypatch.setattr(CheckpointFolder, "due", property(lambda _: True))

    def stop(step: Any) -> None:
        if step.step == 3:
            raise Killed

    with pytest.raises(Killed):
        training(tiny("bert"), checkpoints=folder, on_step=stop).run()
    said: list[str] = []
    tuner = training(tiny("bert"), checkpoints=folder, on_step=lambda step: said.append(step.text))
    found = tuner.run(resume=True)
    assert "going on from step 2 of 4" in said
    for name, value in reference.best.part.items():
        torch.testing.assert_close(found.best.part[name], value, rtol=1e-4, atol=1e-6)


def test_several_labels_a_row_are_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="one label a row"):
        training(tiny("bert"), labels=np.eye(3, dtype=np.uint8)[LABELS])


def test_defaults_of_the_objective(tmp_path: Path) -> None:
    part, recipe = load_recipe({"objective": "contrastive"}, path="/dev/null")
    assert (part, recipe.lr, recipe.batch_size, recipe.steps) == ("top-blocks:4", 1e-4, 64, 20)
    file = tmp_path / "featcache.toml"
    file.write_text('[finetune]\nobjective = "contrastive"\nlr = 3e-5\ntrain = "top-blocks:1"\n')
    part, recipe = load_recipe({"steps": "7"}, path=file)
    assert (part, recipe.lr, recipe.batch_size, recipe.steps) == ("top-blocks:1", 3e-5, 64, 7)
    assert "epochs" not in recipe.identity and recipe.identity["steps"] == 7
    assert set(Recipe().identity) == {
        "epochs", "lr", "head_lr", "layer_decay", "weight_decay", "batch_size", "warmup", "schedule", "clip",
        "dropout", "patience", "label_smoothing", "class_weight",
    }  # fmt: skip


@pytest.mark.usefixtures("arrow_cache")
def test_a_contrastive_run_from_the_command_line(cli: Cli, work: Path) -> None:
    flags = ("--objective", "contrastive", "--rows-per-class", "4", "--train", "top-blocks:1", "--steps", "3")
    made = cli.ok("finetune", *flags, "--view", "last/mean", "--json").json
    assert made["rows"]["train"] == 8 and made["finetune"]["steps"] == 3
    assert made["settings"]["objective"] == "contrastive" and made["settings"]["rows_per_class"] == 4
    (states,) = Path("cache").rglob("states/train-*.h5")
    with h5py.File(states) as file:
        assert len(file["row_hash"]) == 8  # of the drawn rows alone
    shown = cli.ok("finetune", *flags, "--view", "last/mean").out
    assert "loss by step" in shown
    run = featcache.load_run(Path("reports"), made["run"])
    texts = ["很好", "太差了"]
    answers = featcache.Predictor.from_run(run).predict(texts)
    assert len(answers) == 2
    line = cli.ok("predict", "--run", made["run"], "--json", texts[0]).json
    assert json.dumps(line)
    assert made["run"] in json.dumps(cli.ok("compare", "--json").json)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--objective", "contrastive", "--epochs", "4"), "--epochs is not for --objective contrastive"),
        (("--objective", "contrastive", "--dropout", "0.1"), "--dropout is not for"),
        (("--steps", "5"), "--steps is not for --objective labels"),
        (("--objective", "triplet"), "triplet"),
        (("--train", "head", "--objective", "contrastive"), "--objective is for blocks"),
        (("--rows-per-class", "0"), "rows-per-class"),
    ],
)
def test_flags_that_do_not_fit_the_objective(
    flags: tuple[str, ...], words: str, cli: Cli, work: Path
) -> None:
    cli.refused(2, ["finetune", *flags], words)
