"""The share of an extraction that is not the model, by the length of the texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.backbone.encoder import Encoder
from featcache.bench import short_texts
from featcache.bench.short_texts import measure_lengths, texts_of_length
from featcache.errors import UsageError
from featcache.settings import FeatureSettings, PathSettings, Settings
from tests.support.stock import mixed, settings_of


@pytest.fixture
def settings(tiny: Callable[[str], Path], tmp_path: Path) -> Settings:
    backbone = replace(settings_of(tiny("bert")), batch_tokens=256)
    paths = PathSettings(cache_dir=str(tmp_path / "cache"))
    return Settings(backbone=backbone, features=FeatureSettings(prompt="好"), paths=paths)


@pytest.mark.parametrize("length", [5, 20, 64])
def test_texts_are_cut_to_the_length(settings: Settings, length: int) -> None:
    encoder = Encoder.load(settings.backbone, settings.features)
    made = texts_of_length(settings, encoder, mixed(), length)
    lengths = encoder.tokenize(made).lengths
    assert len(set(made)) == len(made) > 10 and abs(lengths.mean() - length) < 0.1 * length
    assert lengths.max() <= length


def test_shares_of_an_extraction(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_texts, "UNITS", 1)
    encoder = Encoder.load(settings.backbone, settings.features)
    short, longer = measure_lengths(settings, encoder, mixed(), [10, 40])
    assert short.tokens < 11 < longer.tokens and short.texts > longer.texts
    for one in (short, longer):
        # A busy machine may give one measurement less time than another: below 0 means nothing more.
        assert one.outside_model < 1 and one.tokenizing > 0 and one.texts_per_s > 0
    assert not list(Path(settings.paths.cache_dir).iterdir())
    with pytest.raises(UsageError, match="the longest has 64"):
        list(measure_lengths(settings, encoder, mixed(), [65]))
