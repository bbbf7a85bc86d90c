"""A planned extraction of 2,500 reviews by a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.settings import Settings
from tests.support.plans import corpus, settings_of


@pytest.fixture
def settings(tiny: Callable[[str], Path], tmp_path: Path) -> Settings:
    train = corpus(tmp_path / "data" / "train.jsonl", 2500)
    validation = corpus(tmp_path / "data" / "validation.jsonl", 10)
    return settings_of(
        tiny("bert"), tmp_path, data_files={"train": str(train), "validation": str(validation)}
    )
