"""Heads on a real GPU get what they get on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featcache.heads import minibatches
from featcache.heads.device import features as device_features
from featcache.heads.features import LabelledFeatures
from featcache.heads.registry import KINDS
from featcache.settings import HeadSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
ON_DEVICE = [kind for kind, known in KINDS.items() if known.on_device]
SETTINGS = HeadSettings(epochs=3, batch_size=32, hidden=24, patience=None)


def rows(seed: int, classes: int) -> LabelledFeatures:
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(600, 40)).astype(np.float16)
    return LabelledFeatures(x, (np.abs(x[:, :classes]).argmax(1)).astype(np.int64))


@pytest.mark.parametrize("room", ["kept", "sent"])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("kind", ON_DEVICE)
def test_logits_are_those_of_the_cpu(
    kind: str, classes: int, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = rows(0, classes), rows(1, classes)
    if room == "sent":
        for module in (minibatches, device_features):
            monkeypatch.setattr(module, "free_bytes", lambda _: 0.0)
    fits = [
        KINDS[kind].fit(train, validation, classes, SETTINGS, seed=0, device=device)
        for device in ("cpu", "cuda")
    ]
    here, there = (fit.last.logits(validation.x) for fit in fits)
    assert np.abs(here - there).max() <= 1e-4 * max(1.0, np.abs(here).max())
