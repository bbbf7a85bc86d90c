"""The linear head on numbers: AdamW comes to the least squares, by one worker as a step by step loop does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featcache.heads.features import LabelledFeatures, Standard
from featcache.heads.registry import fit_linear
from featcache.settings import HeadSettings
from tests.heads.numbers.test_ridge import data


def test_it_comes_to_the_least_squares() -> None:
    train, validation = data(400, 6, noise=0.3), data(100, 6, noise=0.3, seed=1)
    fit = fit_linear(train, validation, 0, HeadSettings(epochs=60, lr=0.01, weight_decay=0.0), seed=0)
    x = np.column_stack([train.x, np.ones(len(train.x))])
    best = np.linalg.lstsq(x.astype(np.float64), train.y, rcond=None)[0]
    wanted = np.column_stack([validation.x, np.ones(len(validation.x))]) @ best
    np.testing.assert_allclose(fit.last.logits(validation.x)[:, 0], wanted, atol=0.05)
    last = fit.history[-1]
    error = float(np.mean((fit.last.logits(validation.x)[:, 0] - validation.y) ** 2))
    assert last.validation_loss == pytest.approx(error, abs=1e-4)
    assert last.validation_accuracy == pytest.approx(1 - error, abs=1e-4)
    losses = [line.validation_loss for line in fit.history]
    assert losses[fit.best_epoch - 1] == min(losses)


def test_its_steps_are_those_of_torch() -> None:
    """One epoch of AdamW on half the squared error, in the order that the seed draws."""
    train = LabelledFeatures(*(part.astype(np.float32) for part in data(64, 5)))
    settings = HeadSettings(epochs=1, lr=0.05, weight_decay=0.1, batch_size=16)
    found = fit_linear(train, train, 0, settings, seed=3).last
    x = torch.from_numpy(Standard.of(train.x)(train.x))
    layer = torch.nn.Linear(5, 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    adam = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.1)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    for rows in order.split(16):
        adam.zero_grad()
        (0.5 * (layer(x[rows])[:, 0] - torch.from_numpy(train.y)[rows]).square().mean()).backward()
        adam.step()
    np.testing.assert_allclose(found.logits(train.x), layer(x).detach().numpy(), atol=1e-4)
