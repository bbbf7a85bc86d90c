"""What a plan measures before it estimates: some units of the corpus, encoded for a few seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.backbone.encoder import Encoder
from featcache.backbone.packing import plan_batches
from featcache.cache.cache import Cache
from featcache.extraction.api import extract_splits
from featcache.planning import sample as plan_sample
from featcache.planning.answer import Ask
from featcache.planning.estimate import plan
from featcache.planning.sample import _part
from featcache.settings import Settings
from tests.support.plans import WORDS, settings_of

pytestmark = pytest.mark.usefixtures("arrow_cache")


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


def test_a_slow_model_ends_the_sample(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, tokens, *rest: (time.sleep(0.2), encode(self, tokens, *rest))[1]
    )
    began = time.perf_counter()
    made = plan(settings, ["train"], Ask(sample_seconds=0.1))
    assert time.perf_counter() - began < 5
    parts = next(fact.value for fact in made.facts if fact.name.startswith("encoded on cpu"))
    assert parts.endswith(f"in {plan_sample.MIN_LATE_PARTS} parts")
