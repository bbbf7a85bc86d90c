from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.labelling.answers import AnswersFile, AnswersHeader
from featcache.labelling.describe import described_probabilities, read_descriptions
from featcache.labelling.pool import TextPool
from featcache.labelling.session import LabelSession
from featcache.labelling.texts import TextsToLabel

LABELS = ("good", "bad", "late")


def made() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of 300 texts, their classes, and features of a description of each class."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((3, 32))
    y = draw.choice(3, 300, p=[0.7, 0.25, 0.05])
    noise = draw.standard_normal((300, 32))
    return (centres[y] * 1.5 + noise).astype(np.float32), y, (centres * 1.5 + 0.5).astype(np.float32)


def test_descriptions_guess_and_find_rare_labels_first(tmp_path: Path) -> None:
    x, y, described = made()
    pool = TextPool.of(x)
    p = described_probabilities(pool, pool.standard(described), np.arange(3))
    assert p.sum(axis=1) == pytest.approx(np.ones(300))
    assert (p.argmax(axis=1) == y).mean() > 0.8
    texts = TextsToLabel.of([f"text {number}" for number in range(300)])
    file = AnswersFile(tmp_path / "a.jsonl", AnswersHeader(labels=LABELS))
    session = LabelSession(texts, file, "me", descriptions={label: ["..."] for label in LABELS})
    session.use_features(np.concatenate([x, described]))
    kinds = []
    for _ in range(14):
        asked = session.question()
        assert asked is not None
        if asked.chosen == "described":
            guess = session.guesses(asked.row)[0]
            assert asked.why == f"like the description of {guess.label}"
        kinds.append(asked.chosen)
        session.answer(asked.row, [LABELS[y[asked.row]]])
    assert {"described", "estimate"} <= set(kinds)
    first = [row for row in session.counted.labels if not texts.reserved[row]]
    assert set(y[first]) == {0, 1, 2}


def test_a_file_of_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "labels.toml"
    path.write_text('"好评" = "客人很满意"\nbad = ["a complaint", "an angry guest"]\n', encoding="utf-8")
    assert read_descriptions(path) == {"好评": ("客人很满意",), "bad": ("a complaint", "an angry guest")}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('good = "x"', "describes 1 labels"),
        ('good = 3\nbad = "x"', "good has no description"),
        ('good = []\nbad = "x"', "good has no description"),
        ('good = " "\nbad = "x"', "empty"),
        ("good", "labels.toml"),
        ('[good]\nbad = "x"', "good has no description"),
    ],
)
def test_odd_descriptions_are_refused(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "labels.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=word) as caught:
        read_descriptions(path)
    assert "a line a label" in (caught.value.hint or "")
    with pytest.raises(UsageError):
        read_descriptions(tmp_path / "missing.toml")
