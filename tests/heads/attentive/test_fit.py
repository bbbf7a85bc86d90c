"""The attentive head learns which tokens count, and is trained as its settings say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from featcache.errors import HeadError, UsageError
from featcache.heads.attentive.fit import fit_attentive
from featcache.heads.features import LabelledFeatures, WeightedFeatures
from featcache.heads.scorers import Attentive
from featcache.settings import HeadSettings
from tests.support.token_states import needles

SETTINGS = HeadSettings(queries=4, passes=8, lr=0.02)


def accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == y).mean())


def test_it_finds_the_token_that_decides() -> None:
    train, validation = needles(400), needles(200, seed=1)
    fit = fit_attentive(train, validation, 2, SETTINGS)
    assert accuracy(fit.best.logits(validation.x), validation.y) > 0.97
    assert isinstance(fit.best, Attentive) and fit.best.queries.shape == (1, 4, 8)
    means = np.stack([states.mean(0) for states in train.x.layers[0].texts])  # type: ignore[attr-defined]
    plain = np.linalg.lstsq(np.c_[means, np.ones(400)], 2.0 * train.y - 1, rcond=None)[0]
    held = np.stack([states.mean(0) for states in validation.x.layers[0].texts])  # type: ignore[attr-defined]
    assert ((np.c_[held, np.ones(200)] @ plain > 0) == validation.y).mean() < 0.8, "a mean does not show it"


def test_the_best_epoch_is_kept_and_the_history_is_told() -> None:
    train, validation = needles(200), needles(100, seed=1)
    told: list[int] = []
    fit = fit_attentive(train, validation, 2, SETTINGS, on_epoch=lambda line: told.append(line.epoch))
    assert told == list(range(1, 9)) == [line.epoch for line in fit.history]
    best = max(fit.history, key=lambda line: (line.validation_accuracy, -line.validation_loss))
    assert fit.best_epoch == best.epoch
    assert accuracy(fit.best.logits(validation.x), validation.y) == pytest.approx(best.validation_accuracy)
    noise = validation._replace(y=np.random.default_rng(0).integers(0, 2, 100))  # its loss soon rises
    short = fit_attentive(train, noise, 2, replace(SETTINGS, passes=40, patience=2))
    assert len(short.history) == short.best_epoch + 2 < 40


def test_equal_seeds_give_equal_heads_and_torch_is_left_alone() -> None:
    train, validation = needles(100), needles(50, seed=1)
    before = torch.get_rng_state()
    one, same, other = (
        fit_attentive(train, validation, 2, SETTINGS, seed=seed).last.tensors() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["queries"], other["queries"])


def test_several_labels_a_class_without_rows_and_weights() -> None:
    train, validation = needles(200), needles(100, seed=1)
    several = LabelledFeatures(train.x, np.stack([train.y, 1 - train.y, np.zeros(200)], 1).astype(np.uint8))
    held = LabelledFeatures(validation.x, np.stack([validation.y, 1 - validation.y, validation.y * 0], 1))
    held = held._replace(y=held.y.astype(np.uint8))
    logits = fit_attentive(several, held, 3, SETTINGS).best.logits(held.x)
    assert (((logits >= 0) == held.y).all(axis=1)).mean() > 0.9 and (logits[:, 2] == -1e4).all()
    unseen = fit_attentive(train, validation, 3, SETTINGS).best.logits(validation.x)
    assert unseen.shape == (100, 3) and (unseen[:, 2] == -1e4).all()
    ones = np.where(train.y == 1, 1.0, 0.0)  # rows of class 0 do not count
    only = fit_attentive(WeightedFeatures(*train, ones), validation, 2, SETTINGS).best
    assert (only.logits(validation.x).argmax(axis=1) == 1).mean() > 0.95
    balanced = fit_attentive(train, validation, 2, replace(SETTINGS, class_weight="balanced")).best
    assert accuracy(balanced.logits(validation.x), validation.y) > 0.9


def test_standardised_states_give_the_same_head_at_any_scale() -> None:
    train, validation = needles(200), needles(100, seed=1)

    def scaled(rows: LabelledFeatures) -> LabelledFeatures:
        layers = rows.x.layers  # type: ignore[attr-defined]
        texts = [replace(layer, texts=[100 * text + 7 for text in layer.texts]) for layer in layers]
        return rows.of(replace(rows.x, layers=tuple(texts)))  # type: ignore[type-var]

    plain = fit_attentive(train, validation, 2, SETTINGS).best.logits(validation.x)
    large = scaled(validation)
    found = fit_attentive(scaled(train), large, 2, SETTINGS).best.logits(large.x)
    assert float((plain.argmax(1) == found.argmax(1)).mean()) > 0.97


def test_what_it_cannot_be_trained_on_is_refused() -> None:
    train, validation = needles(20), needles(10, seed=1)
    with pytest.raises(HeadError, match="9 queries for states of 8 numbers"):
        fit_attentive(train, validation, 2, replace(SETTINGS, queries=9))
    with pytest.raises(HeadError, match="single class"):
        fit_attentive(train._replace(y=train.y * 0), validation, 2, SETTINGS)
    with pytest.raises(UsageError, match="reads token states"):
        fit_attentive(LabelledFeatures(np.zeros((4, 8)), train.y[:4]), validation, 2, SETTINGS)
    with pytest.raises(HeadError, match="diverged"):
        fit_attentive(train, validation, 2, replace(SETTINGS, lr=1e30))
