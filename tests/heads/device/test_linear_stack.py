"""A stack of heads on a device gets the weights that it gets on the CPU."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from featcache.heads import linear_stack, minibatches
from featcache.heads.features import LabelledFeatures, WeightedFeatures
from featcache.heads.fit import Fit, Member
from featcache.heads.linear_stack import fit_stack
from featcache.settings import HeadSettings
from tests.support.second_device import second_device

ROWS, WIDTH, CLASSES = 90, 7, 3
SETTINGS = HeadSettings(epochs=4, batch_size=16)


def features(seed: int, task: str) -> dict[str, LabelledFeatures]:
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(ROWS, 2 * WIDTH)).astype(np.float16)
    y: np.ndarray
    if task == "several labels":
        y = (dice.random((ROWS, CLASSES)) < 0.4).astype(np.uint8)
    elif task == "numbers":
        y = x[:, :3].sum(1).astype(np.float64)
    else:
        y = (x[:, 0] > 0).astype(np.int64) + (x[:, WIDTH] > 0)
    make: Any = LabelledFeatures
    if task == "row weights":
        weight = dice.random(ROWS)

        def make(x: np.ndarray, y: np.ndarray) -> LabelledFeatures:
            return WeightedFeatures(x, y, weight)

    return {"a": make(x[:, :WIDTH], y), "b": make(x[:, WIDTH:], y)}


MEMBERS = [
    Member("a", lr=1e-2, seed=0),
    Member("b", lr=3e-2, weight_decay=0.1, seed=1, label_smoothing=0.1, class_weight="balanced"),
    Member("b,a", lr=1e-2, seed=2),
]


def fit(task: str, members: list[Member], **more: Any) -> list[Fit]:
    settings = replace(SETTINGS, patience=3)
    classes = 0 if task == "numbers" else CLASSES
    # Wrappers of tensors cannot be inference tensors.
    with torch.no_grad():
        plain: Any = inspect.unwrap(fit_stack)
        fits: list[Fit] = plain(features(0, task), features(1, task), classes, members, settings, **more)
        return fits


@pytest.mark.parametrize("room", ["kept", "sent"])
@pytest.mark.parametrize("task", ["one label", "several labels", "numbers", "row weights"])
def test_weights_and_history_are_those_of_the_cpu(
    task: str, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [replace(each, label_smoothing=0.0, class_weight="none") for each in MEMBERS]
    members = plain if task in ("numbers", "row weights") else MEMBERS
    expected = fit(task, members)
    if room == "sent":
        monkeypatch.setattr(minibatches, "free_bytes", lambda _: 0.0)
    monkeypatch.setattr(minibatches, "NUMBERS_AT_ONCE", 16 * 16 * 2)  # several parts an epoch
    with second_device() as device:
        monkeypatch.setattr(linear_stack, "head_device", lambda *_: device)
        found = fit(task, members)
    for one, other in zip(found, expected, strict=True):
        for name, tensor in other.last.tensors().items():
            np.testing.assert_allclose(one.last.tensors()[name], tensor, rtol=0, atol=1e-5, err_msg=name)
        history = [[line.train_loss, line.validation_loss] for line in one.history]
        np.testing.assert_allclose(
            history, [[line.train_loss, line.validation_loss] for line in other.history], atol=1e-5
        )
