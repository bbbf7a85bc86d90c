"""The whole job beside other tools: what is measured, and what is computed from it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.bench import job
from featcache.bench.job import bench_job
from featcache.bench.peers.learning_script import _steps_of_setfit
from featcache.errors import FeatcacheError, UsageError
from featcache.settings import BackboneSettings, DataSettings, FeatureSettings, Settings
from tests.support.cli_tools import write_reviews

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.fixture
def settings(tiny: Callable[[str], Path], tmp_path: Path) -> Settings:
    write_reviews(tmp_path / "reviews", 60)
    return Settings(
        backbone=BackboneSettings(model=str(tiny("bert")), device="cpu", dtype="float32"),
        data=DataSettings(dataset=str(tmp_path / "reviews")),
        features=FeatureSettings(max_length=16),
    )


def test_costs_of_other_rows_are_computed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(contender: str, data: job._CsvRows, python: str, steps: int) -> job._JobTimes:
        with (data.folder / "train.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == data.count and {row["label"] for row in rows} == set(
            data.splits["train"].label_names
        )
        assert len(data.splits["test"]) == -(-data.count // 8)
        own = job._JobTimes(data.count, 5 + 0.1 * data.count, 10**8)
        more = {"tutorial": (99.0 * data.count, 1), "setfit": (2.0 * data.count**2, 2)}.get(contender)
        if more is None:
            return own
        return job._JobTimes(own.rows, own.seconds, 10**8, more[0], "from some", more[1])

    monkeypatch.setattr(job, "_measure", measure)
    found = bench_job(settings, rows=40)
    by = {(cost.contender, cost.rows): cost for cost in found.costs}
    assert [cost.rows for cost in found.costs if cost.contender == "setfit"] == [
        10,
        40,
        1_000,
        10_000,
        100_000,
    ]
    assert by["featcache", 40].computed == "" and by["featcache", 40].seconds == pytest.approx(9)
    for name, more in (("featcache", 0.0), ("tutorial", 99e3), ("setfit", 2e6)):
        cost = by[name, 1_000]
        assert cost.seconds == pytest.approx(105 + more, rel=1e-5) and cost.computed == "from 10 and 40 rows"
        assert cost.peak_bytes is None and by[name, 40].peak_bytes == 10**8
    assert by["tutorial", 10].computed == "from some"


@pytest.mark.slow
def test_the_real_job_beside_a_loop(settings: Settings) -> None:
    found = bench_job(settings, rows=40, peers=("tutorial", "setfit"), peer_python=sys.executable)
    by = {(cost.contender, cost.rows): cost for cost in found.costs}
    assert by["featcache", 40].seconds > 1 and (by["featcache", 40].peak_bytes or 0) > 10**8
    assert by["tutorial", 40].computed == "100 epochs from one"
    assert found.unavailable == {"setfit": "No module named 'setfit'"}


def test_a_run_that_fails_says_why(settings: Settings, tmp_path: Path) -> None:
    broken = Settings(backbone=BackboneSettings(model=str(tmp_path / "none")), data=settings.data)
    with pytest.raises(FeatcacheError, match="featcache run ended with exit code 4"):
        bench_job(broken, rows=40, peers=())


def test_refused(settings: Settings) -> None:
    with pytest.raises(UsageError, match="no peer 'spark'"):
        bench_job(settings, peers=["spark"])
    with pytest.raises(UsageError, match="7 rows are too few"):
        bench_job(settings, rows=30, peers=())


def test_steps_of_setfit() -> None:
    assert (
        _steps_of_setfit([0, 0, 0, 1, 1]) == 2
    )  # 9 equal pairs, with those of a text and itself; 6 different
    assert _steps_of_setfit([0] * 64 + [1] * 64) == 2 * 64 * 65 // 16
