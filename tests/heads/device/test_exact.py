"""The exact head computes on the device of its features, with the weights that the CPU finds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from featcache.errors import HeadError
from featcache.heads.device.features import DeviceFeatures
from featcache.heads.features import LabelledFeatures, WatchedRows, WeightedFeatures
from featcache.heads.logistic import objective
from featcache.heads.logistic.exact import Solution, fit, fit_path, refine
from featcache.heads.logistic.objective import FeatureSlices
from featcache.heads.logistic.penalty import PenaltyScores, choose_penalty, cross_validate_penalty, folds_of
from featcache.heads.registry import KINDS, fit_exact
from featcache.heads.scorers import Linear
from featcache.settings import HeadSettings
from featcache.system.progress import Progress
from featcache.system.sharded_array import JoinedColumns
from tests.support.logistic import rows
from tests.support.second_device import second_device

PENALTIES = [0.01, 0.1]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of two parts each."""
    monkeypatch.setattr(objective, "NUMBERS_AT_ONCE", 750)
    monkeypatch.setattr(objective, "GRAM_NUMBERS_AT_ONCE", 750)


def assert_same(found: Solution, expected: Solution) -> None:
    for name in ("weight", "bias", "loss"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    assert found.C == expected.C and found.converged


def assert_same_path(
    x: np.ndarray, solve: Callable[[FeatureSlices], list[Solution]], room: float | None = None
) -> None:
    """`solve` finds the same of features on the second device as of those on the CPU."""
    expected = solve(x)
    with second_device() as device:
        found = solve(DeviceFeatures(x, device, room))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("room", [None, 0], ids=["kept", "sent"])
@pytest.mark.parametrize("shape", [(300, 20, 2), (300, 20, 4), (60, 90, 3)])
def test_a_path_of_penalties(shape: tuple[int, int, int], room: float | None) -> None:
    x, y = rows(*shape, noise=2)
    assert_same_path(x, lambda x: fit_path(x, y, shape[2], PENALTIES), room)


def test_several_labels_a_row() -> None:
    x, _ = rows(300, 20, 2)
    r = np.random.default_rng(1)
    y = (x @ r.normal(size=(20, 3)) + r.normal(size=(300, 3)) > 0.5).astype(np.uint8)
    assert_same_path(x, lambda x: fit_path(x, y, 3, PENALTIES))


@pytest.mark.parametrize("shape", [(300, 20, 3), (60, 90, 2)])
def test_one_penalty_with_weights_and_from_a_rough_solution(shape: tuple[int, int, int]) -> None:
    x, y = rows(*shape, noise=2)
    weight = np.random.default_rng(2).integers(0, 4, len(y)).astype(float)
    assert_same_path(x, lambda x: [fit(x, y, shape[2], 0.1, sample_weight=weight)])
    rough = fit(x, y, shape[2], 0.1, tolerance=1e-2)
    assert_same_path(x, lambda x: [refine(x, y, shape[2], rough, sample_weight=weight)])


@pytest.mark.parametrize("shape", [(300, 20, 3), (60, 90, 2)])
@pytest.mark.parametrize("by_folds", [False, True])
def test_choice_of_the_penalty(shape: tuple[int, int, int], by_folds: bool) -> None:
    x, y = rows(*shape, noise=2)
    held_out, y_held_out = rows(100, shape[1], shape[2], seed=1)
    folds = folds_of(y, shape[2], 2)

    def chosen(x: FeatureSlices, held_out: FeatureSlices) -> PenaltyScores:
        if by_folds:
            return cross_validate_penalty(x, y, shape[2], PENALTIES, folds)
        return choose_penalty(x, y, shape[2], PENALTIES, (held_out, y_held_out))

    expected = chosen(x, held_out)
    with second_device() as device:
        found = chosen(DeviceFeatures(x, device), DeviceFeatures(held_out, device, room=0))
    np.testing.assert_allclose(found.log_loss, expected.log_loss, rtol=1e-4)
    np.testing.assert_array_equal(found.accuracy, expected.accuracy)
    assert found.C == expected.C


def test_features_that_are_watched_stay_on_their_device() -> None:
    x, y = rows(300, 10, 2, noise=2)
    passes: list[int] = []
    with second_device() as device:
        there = DeviceFeatures(x, device)
        watched = WatchedRows(there, passes.append)
        computed = objective.Objective(watched, y[:, None].astype(np.uint8), np.ones(len(y)), 1)
        assert computed.start().device == device
        assert computed(computed.start(), 0.1).gradient.device == device
        assert_same(fit(watched, y, 2, 1.0), fit(x, y, 2, 1.0))
    assert passes == list(range(1, len(passes) + 1)) and len(passes) > 2


def test_odd_rows_are_named() -> None:
    x, y = rows(120, 10, 2)
    x[7, 3] = np.nan
    with second_device() as device, pytest.raises(HeadError, match="the first is row 8"):
        fit(DeviceFeatures(x, device), y, 2, 1.0)


def _splits() -> tuple[LabelledFeatures, LabelledFeatures]:
    x, y = rows(200, 16, 3, noise=2)
    weight = np.random.default_rng(3).uniform(0.5, 2, 140)
    x = 3 * x + 1
    train = WeightedFeatures(JoinedColumns([x[:140, :6], x[:140, 6:]]), y[:140], weight)
    return train, LabelledFeatures(JoinedColumns([x[140:, :6], x[140:, 6:]]), y[140:])


@pytest.mark.parametrize(
    "settings",
    [
        HeadSettings(C=0.1, class_weight="balanced"),
        HeadSettings(penalty="validation"),
        HeadSettings(penalty="folds", folds=2),
        HeadSettings(C=0.1, view_scales=True),
    ],
    ids=["fixed", "validation", "folds", "view_scales"],
)
def test_the_head_is_that_of_the_cpu(settings: HeadSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.heads.registry.PENALTIES", PENALTIES)
    monkeypatch.setattr("featcache.heads.logistic.view_scales.TRIED", (0.4,))
    train, validation = _splits()
    expected = fit_exact(train, validation, 3, settings)
    asked: list[tuple[str, float, float]] = []
    stages: list[Progress] = []
    computed_on = set()
    original = objective.Objective.__call__

    def noted(self: objective.Objective, *args: object, **more: object) -> objective.Loss:
        computed_on.add(self.device)
        return original(self, *args, **more)  # type: ignore[arg-type]

    def chosen(*of: object) -> torch.device:
        asked.append(of)  # type: ignore[arg-type]
        return torch.device("meta")

    monkeypatch.setattr(objective.Objective, "__call__", noted)
    monkeypatch.setattr("featcache.heads.device.choose.head_device", chosen)
    with second_device() as device:
        found = fit_exact(train, validation, 3, settings, device="auto", on_progress=stages.append)
    assert computed_on == {device}
    assert asked[0][0] == "auto" and 0 < asked[0][1] < asked[0][2]
    assert isinstance(found.best, Linear) and isinstance(expected.best, Linear)
    np.testing.assert_allclose(found.best.weight, expected.best.weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.best.bias, expected.best.bias, rtol=1e-4, atol=1e-6)
    assert found.about is not None and expected.about is not None
    assert found.about["C"] == expected.about["C"]
    assert found.about.get("view_scales") == expected.about.get("view_scales")
    assert stages[-1].stage == "solve" and stages[-1].done > 2


def test_kinds_say_whether_they_take_a_device() -> None:
    assert KINDS["exact"].on_device and not KINDS["ridge"].on_device
