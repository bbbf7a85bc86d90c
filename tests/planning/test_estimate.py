"""Plans: what is planned beside what then happens, what it is built on, what it warns of."""

from __future__ import annotations

import errno
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.backbone.encoder import Encoder
from featcache.backbone.packing import plan_batches
from featcache.bench.plan_check import check_plan
from featcache.cache.cache import Cache
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.data.split import load_splits
from featcache.errors import UsageError
from featcache.extraction.api import extract_splits
from featcache.planning import answer as planned
from featcache.planning import sample as plan_sample
from featcache.planning.answer import ASSUMED, GIVEN, MEASURED, Ask, CorpusPlan
from featcache.planning.estimate import STRUCTURE, forecast, plan, sealed_bytes
from featcache.planning.sample import Sample, Storing, Timing, _part
from featcache.planning.texts import Lengths, made_up_lengths, repeated_share
from featcache.settings import BackboneSettings, DataSettings, FeatureSettings, PathSettings, Settings
from featcache.system import durable as files
from tests.support.cli_tools import contents, environment, write_rows

pytestmark = pytest.mark.usefixtures("arrow_cache")
WORDS = "好坏房间服务酒店电池书很干净差喜欢失望快慢便宜贵"
SLEEP = 1e-4  # seconds a token, in tests whose encoder is made slow


def settings_of(model: Path, folder: Path, **data: Any) -> Settings:
    return Settings(
        backbone=BackboneSettings(model=str(model), device="cpu", dtype="float32", batch_tokens=256),
        data=DataSettings(**data),
        features=FeatureSettings(views=("last/cls", "last/mean", "3/mean"), max_length=40),  # two of them
        paths=PathSettings(cache_dir=str(folder / "cache")),
    )


def corpus(path: Path, rows: int, *, twice: bool = False) -> Path:
    """Reviews of 3 to 60 characters, all different unless `twice`."""
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list(WORDS), draw.integers(3, 60))) + f" {n}" for n in range(rows)]
    if twice:
        texts = [*texts[: rows // 2], *texts[: rows // 2]]
    return write_rows(path, ((text, number % 2) for number, text in enumerate(texts)))


@pytest.fixture
def settings(tiny: Callable[[str], Path], tmp_path: Path) -> Settings:
    train = corpus(tmp_path / "data" / "train.jsonl", 2500)
    validation = corpus(tmp_path / "data" / "validation.jsonl", 10)
    return settings_of(
        tiny("bert"), tmp_path, data_files={"train": str(train), "validation": str(validation)}
    )


@pytest.fixture
def slow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding takes a known time a token, beside which that of the tiny model is small."""
    encode = Encoder.encode

    def slowly(self: Encoder, tokens: Any, *rest: Any) -> Any:
        time.sleep(SLEEP * int(tokens.lengths.sum()))
        return encode(self, tokens, *rest)

    monkeypatch.setattr(Encoder, "encode", slowly)


def sample(**changes: Any) -> Sample:
    """100 texts a second, 100 tokens each, in 9 parts; a second to start up."""
    lengths = Lengths(np.full(1000, 100), np.full(1000, 1e9), 0.0, 0.0)
    timing = Timing(np.full(9, 1e-11), 900, 90_000, 0.0)
    made = Sample(384, lengths, Storing(0.0, 0.0, 0.0), 1, timing, 1.0, 10**9, None, "cpu")
    return replace(made, **changes)


def planned_of(made: Sample, settings: Settings | None = None, **ask: Any) -> CorpusPlan:
    return forecast(settings or Settings(), ["train"], Ask(**({"rows": 10**6} | ask)), made)


# --- beside what happens ------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["pairs", "chunks"])
def test_pairs_and_windows_are_counted_as_they_are_encoded(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(plan_sample, "TOKENIZING", 1e3)  # time for all texts
    draw, lines = np.random.default_rng(0), []
    for number in range(200):
        one, other = ("".join(draw.choice(list(WORDS), draw.integers(3, 60))) for _ in "ab")
        row = {"text": f"{one} {number}", "label": number % 2} | ({"other": other} if kind == "pairs" else {})
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    named = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
    settings = settings_of(
        tiny("bert"), tmp_path, data_files=named, pair_column="other" if kind == "pairs" else None
    )
    if kind == "chunks":
        settings = replace(
            settings, features=replace(settings.features, long_text="chunks", max_length=20, overlap=4)
        )
    made = plan(settings, ["train"], Ask(sample_seconds=0.05))
    extract_splits(settings, ["train"])
    (file,) = Cache.open(settings.paths.cache_dir).files("train")
    assert round(made.tokens.value) == file.tokens
    cut = next(fact.value for fact in made.facts if fact.name == "texts that are cut")
    assert cut == f"{file.truncated / file.rows:.1%}"
    assert (file.truncated == 0) == (kind == "chunks")


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


# --- the sample ---------------------------------------------------------------------------------


def test_parts_are_batches_as_extraction_makes_them() -> None:
    tokens = np.random.default_rng(0).integers(3, 40, 300)
    block = np.random.default_rng(1).permutation(300)[:200]
    parts = [_part(block, tokens, 256, 4, offset) for offset in range(4)]
    assert sorted(np.concatenate(parts).tolist()) == sorted(block.tolist())
    batches = plan_batches(tokens[block], 256)
    assert len(batches) == 19
    for part in parts:
        assert (np.diff(tokens[part]) <= 0).all()
        assert abs(tokens[part].mean() / tokens[block].mean() - 1) < 0.25  # long ones and short ones
        assert sum(set(block[batch]) <= set(part) for batch in batches) in (4, 5)
    assert len(_part(block[:1], tokens, 1, 8, 5)) == 1


def test_equal_texts_are_counted_where_all_rows_are_at_hand(settings: Settings, tmp_path: Path) -> None:
    path = corpus(tmp_path / "twice" / "train.jsonl", 400, twice=True)
    data = replace(settings.data, data_files={"train": str(path), "validation": str(path)})
    twice, splits = replace(settings, data=data), ["train", "validation"]
    made = plan(twice, splits, Ask(sample_seconds=0.05))
    assert made.rows == 800
    assert ("equal texts, encoded once", "75.0%") in [(fact.name, fact.value) for fact in made.facts]
    assert not any("cannot know" in note for note in made.notes)
    more = plan(twice, splits, Ask(rows=801, sample_seconds=0.05))
    assert ("equal texts in the sample", "75.0%") in [(fact.name, fact.value) for fact in more.facts]
    assert any("75.0%" in note and "cannot know" in note for note in more.notes)


@pytest.mark.parametrize("repeated", [None, 0.0, 0.75])
def test_equal_texts_are_encoded_once(repeated: float | None, settings: Settings) -> None:
    lengths = Lengths(np.array([10, 10]), np.array([1.0, 1.0]), 0.0, 0.0)
    sample = Sample(8, lengths, Storing(0.0, 0.0, 0.0), repeated=repeated)
    made = forecast(settings, ["train"], Ask(rows=4000, rate=10.0), sample)
    assert made.seconds.value == pytest.approx(400 * (1 - (repeated or 0)))


def test_repeated_share_of_some_rows(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [("好", 0), ("坏", 1), ("好", 0)])
    validation = write_rows(tmp_path / "validation.jsonl", [("坏", 1), ("书", 0)])
    data = DataSettings(data_files={"train": str(train), "validation": str(validation)})
    splits = list(load_splits(data, ["train", "validation"], seed=0).values())
    draw = np.random.default_rng(0)
    assert repeated_share(splits, 5, draw) == pytest.approx(2 / 5)
    assert repeated_share(splits, 1, draw) == 0
    assert repeated_share(splits, 6, draw) is None and repeated_share(splits, 0, draw) is None


def test_made_up_texts_before_there_is_data(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    settings = settings_of(tiny("roberta"), tmp_path, dataset="no/such-thing")
    made = plan(settings, ["train"], Ask(rows=10**8, tokens=20, sample_seconds=0.05))
    assert made.tokens.how == made.seconds.how == ASSUMED
    assert abs(made.tokens.value / 10**8 - 20) < 2
    assert made.memory is None or made.memory > 10**7
    assert any("made up" in note for note in made.notes)
    chunks = replace(settings, features=replace(settings.features, long_text="chunks", overlap=4))
    with pytest.raises(UsageError, match="--tokens makes up texts that are cut"):
        plan(chunks, ["train"], Ask(rows=10, tokens=20))


def test_made_up_lengths_have_the_mean_asked_for() -> None:
    lengths, cut = made_up_lengths(100, 3, 512, np.random.default_rng(0))
    assert abs(lengths.mean() - 100) < 4 and lengths.min() >= 3 and cut < 0.01
    lengths, cut = made_up_lengths(2000, 3, 512, np.random.default_rng(0))
    assert lengths.max() == 512 and cut > 0.9


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


def test_a_slow_model_ends_the_sample(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, tokens, *rest: (time.sleep(0.2), encode(self, tokens, *rest))[1]
    )
    began = time.perf_counter()
    made = plan(settings, ["train"], Ask(sample_seconds=0.1))
    assert time.perf_counter() - began < 5
    parts = next(fact.value for fact in made.facts if fact.name.startswith("encoded on cpu"))
    assert parts.endswith(f"in {plan_sample.LEAST_LATE} parts")


# --- the arithmetic -----------------------------------------------------------------------------


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


def test_a_worker_that_would_wait_for_its_texts() -> None:
    lengths = replace(sample().lengths, seconds=1e-3)
    assert any(
        "would wait" in text for text in planned_of(sample(timing=None, lengths=lengths), rate=5e3).warnings
    )
    assert not planned_of(sample(timing=None, lengths=lengths), rate=500.0, rows=1000).warnings


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


def test_warnings_of_what_cannot_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**15, 0, 10**15))
    monkeypatch.setattr(planned.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 10**6)
    lengths = replace(sample().lengths, truncated=0.3)
    text = "\n".join(planned_of(sample(lengths=lengths, batch_tokens=2048), rows=10**9).warnings)
    for words in (
        "200.0 GB to tell",
        "30.0% of the texts are truncated at 512",
        "116 days is long",
        "2048 fitted",
    ):
        assert words in text
    assert "does not fit" not in text
    assert not planned_of(sample()).warnings


def test_a_busy_machine_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.system import machine

    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1])
    assert any("busy" in text and "load 2.5 on 2" in text for text in planned_of(sample(load=2.5)).warnings)
    assert not planned_of(sample(load=1.5)).warnings


def test_shards() -> None:
    made = planned_of(sample(), rows=10**8)
    assert made.shards == math.ceil(made.cache_bytes / 4e9) == 21
    assert made.rows_a_shard == math.ceil(10**8 / 21)
    assert "--shard-size" not in made.command  # it is the default
    small = planned_of(sample(), shard_bytes=10**9, rows=10**8)
    assert small.command[-2:] == ("--shard-size", "1000000000")
    assert planned_of(sample(), shard_bytes=10**15, rows=10**8).shards == 1


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"rows": 0}, "--rows 0: must be above 0"),
        ({"rows": 10**14}, "--rows 1e+14"),
        ({"tokens": 100}, "--tokens without --rows"),
        ({"rate": math.nan}, "--rate nan"),
        ({"rate": math.inf}, "--rate inf"),
        ({"rate": 1, "tflops": 1}, "--rate and --tflops cannot be given together"),
        ({"efficiency": 1.5}, "--efficiency 1.5: must be above 0 and at most 1"),
        ({"gpus": 8, "workers": 4}, "a worker has one GPU"),
        ({"gpus": 0}, "--gpus 0"),
        ({"sample_seconds": -1}, "--sample-seconds -1"),
        ({"gpus": 8}, "says nothing of a GPU"),
    ],
)
def test_refused(settings: Settings, ask: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        plan(settings, ["train"], Ask(**ask))
    assert words in refusal.value.what
