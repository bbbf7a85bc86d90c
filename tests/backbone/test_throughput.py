"""The share of the machine's peak that encoding reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.backbone import throughput
from featcache.backbone.throughput import Speedometer, quick_peak, useful_flops
from tests.support.clock import Clock
from tests.support.stock import encoder, loaded

Folder = Callable[[str], Path]
PEAK = 50.0  # GFLOP/s, made up


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    def measure(*_: Any) -> float:
        clock.now += 3.0
        clock.measured = getattr(clock, "measured", 0) + 1  # type: ignore[attr-defined]
        return PEAK

    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(throughput, "quick_peak", measure)
    return clock


def test_speedometer_step_is_useful_work_over_time_and_peak(tiny: Folder, clock: Clock) -> None:
    made = encoder(loaded(tiny("bert")), "last/mean")
    lengths = np.array([3, 9, 50, 9, 30, 2])
    meter = Speedometer(made, 1000)
    assert meter.step(0, 0) is None
    meter.expect(lengths)
    clock.now += 1.5
    first = useful_flops(made.backbone, np.array([50, 30])) / 1.5 / (PEAK * 1e9)  # the longest are first
    assert meter.step(2, 80) == pytest.approx(first)
    clock.now += 0.5
    whole = useful_flops(made.backbone, lengths) / 2.0 / (PEAK * 1e9)  # without the 3 s of the measurement
    assert meter.step(4, 23) == pytest.approx(whole)
    assert clock.measured == 1  # type: ignore[attr-defined]


def test_speedometer_counts_only_blocks_that_run(tiny: Folder, clock: Clock) -> None:
    shares = []
    for view in ("last/mean", "1/mean"):
        meter = Speedometer(encoder(loaded(tiny("bert")), view), 1000)
        meter.expect(np.array([50]))
        clock.now += 2.0
        shares.append(meter.step(1, 50))
    assert shares[1] == pytest.approx(shares[0] / 3)


@pytest.mark.parametrize(("seconds", "total", "measured"), [(0.9, 9999, 0), (1.1, 9, 0), (1.1, 60, 1)])
def test_speedometer_measures_the_peak_only_for_long_work(
    seconds: float, total: int, measured: int, tiny: Folder, clock: Clock
) -> None:
    """Five texts in 1.1 s: of 9 not a second is left, of 60 there are twelve."""
    meter = Speedometer(encoder(loaded(tiny("bert"))), total)
    meter.expect(np.full(5, 10))
    clock.now += seconds
    assert (meter.step(5, 50) is not None) == bool(measured)
    assert getattr(clock, "measured", 0) == measured


def test_quick_peak_is_measured_once() -> None:
    quick_peak.cache_clear()
    first = quick_peak(torch.float32, torch.device("cpu"))
    began = time.perf_counter()
    assert quick_peak(torch.float32, torch.device("cpu")) == first
    assert time.perf_counter() - began < 0.01
    assert 0.05 < first < 1e6  # GFLOP/s
