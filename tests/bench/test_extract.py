"""`featcache bench extract`: featcache alone and beside busy processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.bench.extract import bench_extract, busy_processes
from featcache.settings import FeatureSettings, Settings
from tests.support.stock import mixed, settings_of


def test_bench_extract_beside_busy_processes(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.bench.extract.gemm_peak", lambda *_: 100.0)
    settings = Settings(backbone=settings_of(tiny("bert")), features=FeatureSettings())
    alone = bench_extract(settings, mixed(), peers=())
    assert alone.beside is None
    found = bench_extract(settings, mixed(), peers=(), beside=2).beside
    assert found is not None and found.processes == 2
    assert found.slower_by > 0 and found.texts_per_s > 0


def test_busy_processes_compute_and_end() -> None:
    with busy_processes(1) as (process,):
        spent = Path(f"/proc/{process.pid}/stat")
        deadline = time.monotonic() + 30
        while int(spent.read_text().split()[13]) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert int(spent.read_text().split()[13]) >= 5  # clock ticks
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
