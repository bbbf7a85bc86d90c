"""Planned time, disk and memory beside what then happens, and how the sample is scaled up to them."""

from __future__ import annotations

import errno
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.backbone.encoder import Encoder
from featcache.bench.plan_check import check_plan
from featcache.cache.cache import Cache
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.extraction.api import extract_splits
from featcache.planning import sample as plan_sample
from featcache.planning.answer import ASSUMED, GIVEN, MEASURED, Ask
from featcache.planning.estimate import STRUCTURE, forecast, plan, sealed_bytes
from featcache.planning.sample import Sample, Storing, Timing
from featcache.planning.texts import Lengths
from featcache.settings import BackboneSettings, DataSettings, FeatureSettings, PathSettings, Settings
from featcache.system import durable as files
from tests.support.cli_tools import contents, environment
from tests.support.plans import planned_of, sample

pytestmark = pytest.mark.usefixtures("arrow_cache")
SLEEP = 1e-4  # seconds a token, in tests whose encoder is made slow


@pytest.fixture
def slow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding takes a known time a token, beside which that of the tiny model is small."""
    encode = Encoder.encode

    def slowly(self: Encoder, tokens: Any, *rest: Any) -> Any:
        time.sleep(SLEEP * int(tokens.lengths.sum()))
        return encode(self, tokens, *rest)

    monkeypatch.setattr(Encoder, "encode", slowly)


@pytest.mark.slow  # it compares times: other work on the machine makes it fail
@pytest.mark.usefixtures("slow_encoder")
def test_three_sizes_take_what_was_planned(settings: Settings) -> None:
    for rows in (300, 600, 1200):
        checked = check_plan(settings, rows, sample_seconds=1.0)
        assert checked.error < 0.4, checked  # on machines that do other things as well
        low, high = checked.interval
        assert low <= checked.planned <= high
        assert checked.measured > SLEEP * 15 * rows
    assert not list(Path(settings.paths.cache_dir).iterdir())


@pytest.mark.slow
def test_three_sizes_of_the_demo(demo_model: Path, tmp_path: Path) -> None:
    from featcache.demo.demo import build_reviews

    build_reviews(tmp_path / "reviews")
    settings = Settings(
        backbone=BackboneSettings(model=str(demo_model)),
        data=DataSettings(dataset=str(tmp_path / "reviews")),
        features=FeatureSettings(views=("last/mean",), prompt="query: "),
        paths=PathSettings(cache_dir=str(tmp_path / "cache")),
    )
    for rows in (500, 1000, 2000):
        assert check_plan(settings, rows).error < 0.15


def test_disk_and_tokens_are_what_the_file_has(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_sample, "TOKENIZING", 1e3)  # time for all texts
    made = plan(settings, ["train"], Ask(sample_seconds=0.05))
    extract_splits(settings, ["train"])
    (file,) = Cache.open(settings.paths.cache_dir).files("train")
    assert made.rows == file.rows == 2500
    assert abs(made.cache_bytes - file.path.stat().st_size) <= STRUCTURE
    assert abs(made.tokens.value - file.tokens) <= 1  # all texts were tokenised: no interval, no error
    assert made.tokens.low == made.tokens.high
    cut = next(fact.value for fact in made.facts if fact.name == "texts that are cut")
    assert cut == f"{file.truncated / file.rows:.1%}"


@pytest.mark.parametrize("rows", [1, 4097, 60_000])
def test_bytes_of_larger_files(tmp_path: Path, rows: int) -> None:
    shapes = {"a": ((rows, 48), "float16"), "b": ((rows, 48), "float16"), "label": ((rows,), "int64")}
    shapes |= {"hash": ((rows, 32), "uint8"), "n": ((rows,), "int32"), "cut": ((rows,), "uint8")}
    columns = [
        Column(name, shape, dtype, [np.zeros(shape, dtype)]) for name, (shape, dtype) in shapes.items()
    ]
    write_sealed(tmp_path / "x.h5", {}, columns)
    assert 0 <= sealed_bytes(rows, 2, 48, 2) - (tmp_path / "x.h5").stat().st_size <= STRUCTURE


def test_a_plan_leaves_nothing_behind(settings: Settings, tmp_path: Path) -> None:
    Path(settings.paths.cache_dir).mkdir()
    before = contents(tmp_path / "data")
    plan(settings, ["train"], Ask(sample_seconds=0.05))
    assert contents(tmp_path / "data") == before
    assert not list(Path(settings.paths.cache_dir).iterdir())


def test_a_full_disk_can_be_planned_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.disk, "reserve", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    made = plan(settings, ["train"], Ask(sample_seconds=0.05))
    assert made.free_bytes == 1000
    assert any("does not fit" in text and "1.0 kB are free" in text for text in made.warnings)


@pytest.mark.parametrize("repeated", [None, 0.0, 0.75])
def test_equal_texts_are_encoded_once(repeated: float | None, settings: Settings) -> None:
    lengths = Lengths(np.array([10, 10]), np.array([1.0, 1.0]), 0.0, 0.0)
    sample = Sample(8, lengths, Storing(0.0, 0.0, 0.0), repeated=repeated)
    made = forecast(settings, ["train"], Ask(rows=4000, rate=10.0), sample)
    assert made.seconds.value == pytest.approx(400 * (1 - (repeated or 0)))


def test_a_given_rate_and_lengths_need_no_model(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    code = (
        "import sys; from featcache.settings import *; from featcache.planning.estimate import *\n"
        "from featcache.planning.answer import Ask\n"
        f"s = Settings(backbone=BackboneSettings(model={str(tiny('bert'))!r}))\n"
        "p = plan(s, ['train'], Ask(rows=10**9, tokens=100, rate=20000, gpus=64))\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules\n"
        "print(round(p.seconds.value), p.seconds.low == p.seconds.high)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    seconds, exact = done.stdout.split()
    assert abs(int(seconds) / (10**9 / 64 / 20000 / 0.95) - 1) < 0.01 and exact == "True"


def test_rows_workers_and_price_scale_the_time() -> None:
    one = planned_of(sample())
    assert math.isclose(one.seconds.value, 1 + 10**6 / 100, rel_tol=1e-6)
    assert one.seconds.how == MEASURED
    assert math.isclose(planned_of(sample(), rows=2 * 10**6).seconds.value, 1 + 20_000, rel_tol=1e-6)
    gpus = planned_of(sample(device="cuda:0"), rows=10**8, gpus=64, efficiency=0.5, price=2.0)
    assert gpus.nodes == 8 and gpus.workers == 64
    assert math.isclose(gpus.seconds.value, 1 + 10**8 / 100 / 32, rel_tol=1e-3)
    assert gpus.seconds.how == ASSUMED  # the efficiency is
    assert gpus.cost is not None and math.isclose(gpus.cost.value, 2 * 64 * gpus.seconds.value / 3600)
    machines = planned_of(sample(), nodes=4, efficiency=1.0, price=1.0)
    assert machines.cost is not None and math.isclose(machines.cost.value, 4 * machines.seconds.value / 3600)


def test_few_blocks_do_not_go_evenly_into_many_workers() -> None:
    rows = 10 * 8 * 4096 // 100  # ten blocks
    made = planned_of(sample(device="cuda:0", start_up=0.0), rows=rows, gpus=8, efficiency=1.0)
    assert math.isclose(made.seconds.value, 2 * rows / 10 / 100, rel_tol=0.02)  # two rounds of one block


def test_workers_on_the_same_cores_are_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.system import machine

    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1, 2, 3])
    for threads, parallel in ((4, 1), (2, 2), (1, 4)):
        made = planned_of(sample(threads=threads), workers=4, efficiency=1.0)
        assert math.isclose(made.seconds.value, 1 + 10_000 / parallel, rel_tol=0.01)
        assert any("share the cores" in text for text in made.warnings) == (parallel < 4)


def test_hashing_and_sealing_are_not_shared() -> None:
    storing = Storing(hash_row=1e-6, seal=0.5, seal_byte=1e-9)
    made = planned_of(sample(storing=storing, device="cuda:0"), rows=10**8, gpus=64, efficiency=1.0)
    alone = 10**8 * (1e-6 + 1e-9 * (2 * 384 + 45)) + 1.5
    assert math.isclose(made.seconds.value, alone + 10**8 / 6400, rel_tol=1e-3)


def test_given_rates() -> None:
    seen = sample(timing=None)
    for ask, rate, how in (
        ({"rate": 500.0}, 500.0, GIVEN),
        ({"tokens_rate": 5e4}, 500.0, GIVEN),
        ({"tflops": 1.0, "share": 0.5}, 500.0, ASSUMED),
    ):
        made = planned_of(seen, **ask)
        assert math.isclose(made.texts_per_second.value, rate) and made.texts_per_second.how == how
        assert any("rate was given" in note for note in made.notes)


def test_the_interval_holds_the_truth_and_one_hiccup_moves_little() -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(300):
        parts = 1e-11 * draw.normal(1, 0.05, 9)
        work = 1e9 * draw.lognormal(-0.18, 0.6, 1000)
        timing = Timing(parts, 0, 0, 0.0)
        made = planned_of(
            sample(timing=timing, lengths=Lengths(np.full(1000, 100), work, 0.0, 0.0), start_up=0.0)
        )
        held += made.seconds.low <= 10**4 <= made.seconds.high
    assert 0.9 <= held / 300 <= 0.995
    hiccup = Timing(np.array([1e-11] * 8 + [1e-10]), 0, 0, 0.0)
    made = planned_of(sample(timing=hiccup))
    assert math.isclose(made.seconds.value, 10_001, rel_tol=0.01)
    assert made.seconds.high > 1.5 * made.seconds.value  # it is seen all the same
    assert any("longer --sample-seconds" in text for text in made.warnings)
