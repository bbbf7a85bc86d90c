"""What a plan answers: warnings, shards, the command, and questions that are refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import Any

import pytest

from featcache.errors import UsageError
from featcache.planning import answer as planned
from featcache.planning.answer import ASSUMED, ENCODING, GIVEN, TOKENIZING, Ask, published_share
from featcache.planning.estimate import plan
from featcache.settings import Settings
from tests.support.plans import planned_of, sample

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_the_slower_of_tokenising_and_encoding_sets_the_time() -> None:
    tokenised = sample(timing=None, lengths=replace(sample().lengths, seconds=1e-3))
    waiting = planned_of(tokenised, rate=5e3)
    assert waiting.slowest == waiting.document["slowest"] == "reading and tokenising"
    assert waiting.stages[TOKENIZING] == pytest.approx(1000) and waiting.stages[ENCODING] == pytest.approx(
        200
    )
    assert waiting.seconds.value == pytest.approx(sum(waiting.stages.values()) - waiting.stages[ENCODING])
    assert waiting.texts_per_second.value == pytest.approx(1000) and waiting.seconds.how == ASSUMED
    assert any("would wait" in text for text in waiting.warnings)
    fast = planned_of(tokenised, rate=500.0, rows=1000)
    assert fast.slowest == "encoding" and fast.seconds.how == GIVEN and not fast.warnings
    # A rate that was measured has tokenising in it.
    assert planned_of(sample(lengths=tokenised.lengths)).stages[TOKENIZING] == 0


def test_the_share_of_a_peak_is_what_was_published_unless_it_is_given() -> None:
    assert [published_share(tokens) for tokens in (10, 50, 512, 8000)] == [0.25, 0.25, 0.31, 0.31]
    assert 0.27 < published_share(160) < 0.29
    made = planned_of(sample(timing=None), tflops=989.0)
    (fact,) = [fact for fact in made.facts if fact.name.startswith("share of that peak")]
    assert "Arctic Inference on an H200" in fact.name and fact.how == ASSUMED
    rates = made.texts_per_second
    assert rates.low == pytest.approx(989e3 * 0.25, rel=1e-6) and rates.high == pytest.approx(989e3 * 0.31)
    assert rates.value == pytest.approx(989e3 * published_share(100))
    given = planned_of(sample(timing=None), tflops=989.0, share=0.4)
    assert given.texts_per_second.value == pytest.approx(989e3 * 0.4)
    assert any(fact.name == "share of that peak reached" and fact.how == GIVEN for fact in given.facts)


def test_warnings_of_what_cannot_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**15, 0, 10**15))
    monkeypatch.setattr(planned.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 10**6)
    lengths = replace(sample().lengths, truncated=0.3, unknown=0.2)
    text = "\n".join(planned_of(sample(lengths=lengths, batch_tokens=2048), rows=10**9).warnings)
    for words in (
        "200.0 GB to find equal rows",
        "30.0% of the texts are truncated at 512",
        "the sample: 20.0% of the tokens are unknown",
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
