"""`bench_scale` on a small job, and the simulation that docs/scale.md quotes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import UsageError
from featcache.system.machine import available_cores
from featcache_cli.main import main
from tests.support.cli_tools import make_work

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "simulate_scale.py"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("simulate_scale", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_scale"] = module
    spec.loader.exec_module(module)
    return module


simulation = script()


@pytest.mark.slow
@pytest.mark.skipif(len(available_cores()) < 2, reason="one core")
def test_bench_scale_measures_two_workers_beside_one(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(make_work(tmp_path / "work", tiny("bert")))
    asked = ["--engines", "workers", "--seconds", "1", "--plan-rows", "none", "--large-rows", "0", "--json"]
    assert main(["bench", "scale", *asked]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["same_bytes"]) == ["one and workers"] and set(said["seconds"]) == {"one", "workers"}
    assert said["rows"] >= 1024
    one, two = said["seconds"]["one"], said["seconds"]["workers"]
    assert said["workers_2_efficiency"] == pytest.approx(one / two, rel=0.1)


def test_bench_scale_refuses_an_unknown_engine(tmp_path: Path) -> None:
    from featcache.bench.scale import bench_scale
    from featcache.settings import Settings

    with pytest.raises(UsageError, match="no engine 'spark'"):
        bench_scale(Settings(), engines=["spark"])


@given(st.integers(1, 20), st.integers(1, 200), st.floats(0.5, 50))
def test_simulate_without_failures_wastes_only_the_last_round(
    workers: int, units: int, seconds: float
) -> None:
    calm = simulation.Cluster(workers, units, seconds, spread=0.0, start=0.0)
    found = simulation.simulate(calm)
    rounds = -(-units // workers)
    assert found.hours * 3600 == pytest.approx(rounds * seconds)
    assert found.repeated == 0
    assert found.efficiency == pytest.approx(units / (rounds * workers))


@given(st.integers(2, 30), st.integers(50, 400), st.integers(0, 5))
def test_simulate_with_failures_takes_longer_and_finishes(workers: int, units: int, seed: int) -> None:
    calm = simulation.Cluster(workers, units, 10.0)
    slow = simulation.simulate(replace(calm, slow_share=1.0, slow_factor=2.0), seed)
    assert slow.hours > simulation.simulate(calm, seed).hours
    dying = simulation.simulate(replace(calm, failures=20.0, back_after=30.0), seed)
    assert dying.efficiency <= 1 and dying.hours > 0
