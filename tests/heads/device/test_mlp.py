"""The mlp head trained on a second device is that of the CPU, and no step waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch

import featcache.heads.device.features
from featcache.heads.device.rows import DeviceRows
from featcache.heads.features import LabelledFeatures, WeightedFeatures
from featcache.heads.fit import Fit
from featcache.heads.mlp import fit_mlp
from featcache.settings import HeadSettings
from tests.support.feature_rows import clusters, tagged
from tests.support.second_device import SECOND, copies_to_host, second_device


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Heads that are asked to train on a GPU train on the second device."""
    monkeypatch.setattr("featcache.backbone.load.resolve_device", lambda name: SECOND)
    with second_device() as device:
        yield device


def weighted(rows: LabelledFeatures, seed: int = 5) -> LabelledFeatures:
    return WeightedFeatures(*rows, np.random.default_rng(seed).random(len(rows.x)))


def fitted(rows: LabelledFeatures, held_out: LabelledFeatures, device: str, classes: int, **more: Any) -> Fit:
    values = {"epochs": 4, "lr": 3e-3, "batch_size": 16, "hidden": 8} | more
    return fit_mlp(rows, held_out, classes, HeadSettings(**values), seed=3, device=device)


def check_same(found: Fit, expected: Fit) -> None:
    assert found.best_epoch == expected.best_epoch
    assert len(found.history) == len(expected.history)
    for one, other in zip(found.history, expected.history, strict=True):
        np.testing.assert_allclose(astuple(one), astuple(other), rtol=0, atol=1e-4)
    for pair in ((found.best, expected.best), (found.last, expected.last)):
        one, other = (scorer.tensors() for scorer in pair)
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("room", ["kept", "streamed"])
@pytest.mark.parametrize(
    ("several", "weights", "settings"),
    [
        (False, False, {}),
        (False, True, {"class_weight": "balanced", "dropout": 0.3, "label_smoothing": 0.1}),
        (True, False, {"class_weight": "balanced", "dropout": 0.3, "schedule": "cosine"}),
        (True, True, {"label_smoothing": 0.1}),
        (False, False, {"lr": 0.05, "epochs": 30, "patience": 2}),
    ],
    ids=["one label", "one label, weights", "several labels", "several labels, weights", "patience"],
)
def test_the_head_of_a_device_is_that_of_the_cpu(
    second: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    room: str,
    several: bool,
    weights: bool,
    settings: dict[str, Any],
) -> None:
    if room == "streamed":
        monkeypatch.setattr(featcache.heads.device.features, "free_bytes", lambda device: 0.0)
    make = tagged if several else clusters
    rows, held_out = make(70), make(40, seed=1)
    rows = weighted(rows) if weights else rows
    classes = 4 if several else 5  # no row has the classes 3 and 4
    expected = fitted(rows, held_out, "cpu", classes, **settings)
    found = fitted(rows, held_out, "cuda", classes, **settings)
    check_same(found, expected)
    if "patience" in settings:
        assert len(found.history) < 30


def test_features_are_kept_where_they_fit(second: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[DeviceRows] = []
    first = DeviceRows.__init__

    def watched(self: DeviceRows, *args: Any) -> None:
        first(self, *args)
        made.append(self)

    monkeypatch.setattr(DeviceRows, "__init__", watched)
    fitted(clusters(70), clusters(40), "cuda", 3, epochs=1)
    monkeypatch.setattr(featcache.heads.device.features, "free_bytes", lambda device: 0.0)
    fitted(clusters(70), clusters(40), "cuda", 3, epochs=1)
    fitted(clusters(70), clusters(40), "cpu", 3, epochs=1)
    assert [rows.device.type for rows in made] == ["meta"] * 4 + ["cpu"] * 2
    assert [rows.x.kept is not None for rows in made] == [True] * 2 + [False] * 4


@pytest.mark.parametrize("make", [clusters, tagged], ids=["one label", "several labels"])
def test_the_host_waits_for_the_device_once_an_epoch(second: torch.device, make: Any) -> None:
    """Four weights and the scores of two splits come to the host after an epoch; nothing in a step."""
    rows = weighted(make(70))
    counts = []
    for size in (8, 35):
        with copies_to_host() as found:
            fitted(rows, make(40, seed=1), "cuda", 4, epochs=3, batch_size=size, dropout=0.2)
        counts.append(found)
    assert counts[0] == counts[1] == ["aten._to_copy.default"] * 12
