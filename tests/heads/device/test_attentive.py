"""The attentive head trained on a second device is that of the CPU, and no step waits for the device."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from featcache.heads.attentive.fit import fit_attentive
from featcache.heads.features import LabelledFeatures, WeightedFeatures
from featcache.heads.fit import Fit
from featcache.settings import HeadSettings
from tests.support.second_device import copies_to_host, second_device
from tests.support.token_states import needles


def rows_of(count: int, seed: int, several: bool) -> LabelledFeatures:
    rows = needles(count, seed)
    y = np.stack([rows.y, 1 - rows.y], 1).astype(np.uint8) if several else rows.y
    return WeightedFeatures(rows.x, y, np.random.default_rng(seed).random(count))


def fitted(device: str, several: bool, batch_size: int = 10) -> Fit:
    settings = HeadSettings(
        queries=2, passes=2, lr=0.02, batch_size=batch_size, class_weight="balanced", label_smoothing=0.1
    )
    train, validation = (
        rows.of(replace(rows.x, device=device))  # type: ignore[type-var]
        for rows in (rows_of(30, 0, several), rows_of(10, 1, several))
    )
    return fit_attentive(train, validation, 2, settings, seed=3)


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_the_head_of_a_device_is_that_of_the_cpu(several: bool) -> None:
    expected = fitted("cpu", several)
    with second_device() as device:
        found = fitted(device.type, several)
    for one, other in zip(found.history, expected.history, strict=True):
        np.testing.assert_allclose(astuple(one), astuple(other), rtol=0, atol=1e-4)
    one, other = found.last.tensors(), expected.last.tensors()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-4, err_msg=name)


def test_no_step_brings_a_value_to_the_host() -> None:
    counts = []
    for size in (10, 30):
        with second_device() as device, copies_to_host() as found:
            fitted(device.type, False, size)
        counts.append(found)
    assert counts[0] == counts[1] and counts[0]
