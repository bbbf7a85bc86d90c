"""The texts that a plan looks at: drawn from the corpus, or made up before there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.data.split import load_splits
from featcache.errors import UsageError
from featcache.planning.answer import ASSUMED, Ask
from featcache.planning.estimate import plan
from featcache.planning.texts import made_up_lengths, repeated_share
from featcache.settings import DataSettings, Settings
from tests.support.cli_tools import write_rows
from tests.support.plans import corpus, settings_of

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_equal_texts_are_counted_where_all_rows_are_at_hand(settings: Settings, tmp_path: Path) -> None:
    path = corpus(tmp_path / "twice" / "train.jsonl", 400, twice=True)
    data = replace(settings.data, data_files={"train": str(path), "validation": str(path)})
    twice, splits = replace(settings, data=data), ["train", "validation"]
    made = plan(twice, splits, Ask(sample_seconds=0.05))
    assert made.rows == 800
    assert ("equal texts, encoded once", "75.0%") in [(fact.name, fact.value) for fact in made.facts]
    assert not any("cannot tell" in note for note in made.notes)
    more = plan(twice, splits, Ask(rows=801, sample_seconds=0.05))
    assert ("equal texts in the sample", "75.0%") in [(fact.name, fact.value) for fact in more.facts]
    assert any("75.0%" in note and "cannot tell" in note for note in more.notes)


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
    with pytest.raises(UsageError, match="--tokens makes up texts that are truncated"):
        plan(chunks, ["train"], Ask(rows=10, tokens=20))


def test_made_up_lengths_have_the_mean_asked_for() -> None:
    lengths, cut = made_up_lengths(100, 3, 512, np.random.default_rng(0))
    assert abs(lengths.mean() - 100) < 4 and lengths.min() >= 3 and cut < 0.01
    lengths, cut = made_up_lengths(2000, 3, 512, np.random.default_rng(0))
    assert lengths.max() == 512 and cut > 0.9
