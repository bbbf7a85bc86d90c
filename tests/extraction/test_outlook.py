"""What is said before an extraction: rows, labels, model and views, and the time from its first seconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featcache.backbone.model_files.find import find_model
from featcache.backbone.model_files.sentence_transformers import follow
from featcache.data.split import from_texts
from featcache.extraction import outlook
from featcache.extraction.outlook import Announced, announce, data_sentences, model_sentence
from featcache.settings import BackboneSettings, FeatureSettings
from featcache.system.progress import Progress


def test_rows_and_labels_are_counted_over_all_splits() -> None:
    splits = {
        "train": from_texts("train", ["a", "b", "c"], ["x", "x", "y"], ["x", "y"]),
        "test": from_texts("test", ["d"], ["x"], ["x", "y"]),
    }
    assert list(data_sentences(splits))[-1] == "3 train, 1 test row; labels: x (3), y (1)"
    many = {"train": from_texts("train", [f"t{i}" for i in range(9)], [f"l{i}" for i in range(9)])}
    assert list(data_sentences(many))[-1].endswith("l5 (1) and 3 more")
    numbers = {"train": from_texts("train", ["a", "b"], [1.5, 4], task="regression")}
    assert list(data_sentences(numbers))[-1] == "2 train rows; numbers from 1.5 to 4"


def test_the_model_sentence_says_why_a_view_is_made(tiny: Any) -> None:
    files = find_model(BackboneSettings(model=str(tiny("bert"))))
    asked = FeatureSettings(views=("last/auto", "depth", "-2/mean"))
    said = model_sentence(files, follow(asked, files))
    assert "last/cls (as it names no pooling itself)" in said and "views of the layers last" in said
    assert said.startswith(f"model {files.name}, {files.blocks} blocks; views: ")
    assert said.endswith(", -2/mean")


class Encoder:
    """Ten tokens a text."""

    def tokenize(self, texts: list[str], pairs: None) -> SimpleNamespace:
        return SimpleNamespace(lengths=np.full(len(texts), 10))


def outlooks(monkeypatch: pytest.MonkeyPatch, encoder: Any, *steps: tuple[float, int]) -> list[str]:
    """The notes on the time of 100 train and 100 test texts; a step is a second and the texts done then."""
    splits = {name: from_texts(name, [f"text {i}" for i in range(100)]) for name in ("train", "test")}
    files: Any = SimpleNamespace(name="m", blocks=2)
    followed: Any = SimpleNamespace(views={"last/cls": ("last/cls",)}, by_model=False)
    said: list[str] = []
    about = Announced(splits, files, followed, 1000, lambda: encoder)
    call = announce(about, lambda event: said.append(event.text))
    for second, done in steps:
        monkeypatch.setattr(outlook.time, "monotonic", lambda second=second: second)
        call(Progress("encode", "train", done, 100, tokens=10 * done))
    return [text for text in said if "to go" in text]


def test_the_time_is_said_once_from_the_first_seconds_after_the_slow_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = ((0.0, 0), (2.0, 5), (3.0, 15), (4.0, 25), (6.0, 45))
    # 20 of 200 texts from the third second to the fourth: 17.5 s for the other 175
    assert outlooks(monkeypatch, Encoder(), *steps) == ["about 18 s to go; 200.0 kB of features on disk"]


def test_short_work_and_unknown_texts_are_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outlooks(monkeypatch, Encoder(), (0.0, 0), (2.5, 40), (5.0, 99)) == []  # 4.3 s more
    assert outlooks(monkeypatch, Encoder(), (0.0, 0), (1.0, 100)) == []
    assert outlooks(monkeypatch, None, (0.0, 0), (3.0, 20), (6.0, 40)) == []
