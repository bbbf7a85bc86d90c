"""Corpora, settings and samples that plans are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.planning.answer import Ask, CorpusPlan
from featcache.planning.estimate import forecast
from featcache.planning.sample import Sample, Storing, Timing
from featcache.planning.texts import Lengths
from featcache.settings import BackboneSettings, DataSettings, FeatureSettings, PathSettings, Settings
from tests.support.cli_tools import write_rows

WORDS = "好坏房间服务酒店电池书很干净差喜欢失望快慢便宜贵"


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


def sample(**changes: Any) -> Sample:
    """100 texts a second, 100 tokens each, in 9 parts; a second to start up."""
    lengths = Lengths(np.full(1000, 100), np.full(1000, 1e9), 0.0, 0.0)
    timing = Timing(np.full(9, 1e-11), 900, 90_000, 0.0)
    made = Sample(384, lengths, Storing(0.0, 0.0, 0.0), 1, timing, 1.0, 10**9, None, "cpu")
    return replace(made, **changes)


def planned_of(made: Sample, settings: Settings | None = None, **ask: Any) -> CorpusPlan:
    return forecast(settings or Settings(), ["train"], Ask(**({"rows": 10**6} | ask)), made)
