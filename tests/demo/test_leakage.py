"""The inspection of the demo's reviews with their repeats, by the real encoder."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from featcache.demo.demo import PROMPT, raw_reviews
from featcache.extraction.api import extract_splits, find_features
from featcache.inspection.inspection import InspectedSplit, Inspection, inspect_splits
from featcache.settings import load_settings

pytestmark = pytest.mark.demo
ROWS = {"train": 250, "validation": 50, "test": 75}
PLANTED = 6


def drawn(seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Short raw reviews, split at random; the end of test are train texts, copied and then retouched."""
    dice = random.Random(seed)
    rows = [row for row in raw_reviews() if 15 < len(row[0]) < 60]
    dice.shuffle(rows)
    splits, start = {}, 0
    for split, count in ROWS.items():
        splits[split] = rows[start : start + count]
        start += count
    copied = splits["train"][:PLANTED]
    retouched = [(text + "！！", label) for text, label in splits["train"][PLANTED : 2 * PLANTED]]
    splits["test"] = [*splits["test"], *copied, *retouched]
    return splits


@pytest.fixture(scope="module")
def inspected(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    folder = tmp_path_factory.mktemp("leaks")
    for split, rows in drawn().items():
        lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = {"model": str(demo_model), "dataset": str(folder), "prompt": PROMPT, "views": "last/mean"}
    settings = load_settings({**asked, "cache_dir": str(folder / "cache")})
    extract_splits(settings, list(ROWS))
    files = {split: find_features(settings, split) for split in ROWS}
    return inspect_splits({split: InspectedSplit.of(file, "last/mean") for split, file in files.items()})


def test_inspection_finds_every_real_and_planted_copy(inspected: Inspection) -> None:
    splits = drawn()
    train = {text for text, _ in splits["train"]}
    equal = [number for number, (text, _) in enumerate(splits["test"]) if text in train]
    assert len(equal) > PLANTED  # the raw reviews bring some of their own
    leaked = inspected.leaked("test", ("train",))
    assert set(equal) <= set(np.flatnonzero(leaked).tolist())
    begin = int(inspected.rows.starts[2])
    exact = np.flatnonzero((inspected.match[begin:] >= 0) & (inspected.cosine[begin:] == 1))
    assert set(equal) <= set(exact.tolist())


def test_inspection_finds_edited_texts_as_nearly_equal(inspected: Inspection) -> None:
    leaked = inspected.leaked("test", ("train",))
    assert leaked[-PLANTED:].mean() >= 0.75
    assert leaked.mean() < 0.5  # and not everything is called a leak
