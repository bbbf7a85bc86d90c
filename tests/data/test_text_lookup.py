"""Texts of cached rows, found again in their source."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.data.split import from_texts
from featcache.data.text_lookup import LONGEST, find_texts, text_keys
from featcache.fingerprint import row_hashes
from featcache.settings import DataSettings


def written(path: Path, texts: list[str]) -> dict[str, str]:
    lines = "".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(texts))
    path.write_text(lines, encoding="utf-8")
    return {"train": str(path)}


@pytest.mark.usefixtures("arrow_cache")
def test_find_texts_finds_texts_by_hash_in_any_row(tmp_path: Path) -> None:
    texts = [f"评论 {number}" for number in range(20)]
    data = DataSettings(data_files=written(tmp_path / "a.jsonl", [*texts[10:], *texts[:10]]))
    wanted = row_hashes([texts[3], "gone", texts[12]])
    found = find_texts(replace(data, validation_share=0.1), {"train": wanted, "validation": wanted}, 0)
    both = [found.text(split, row) for split in ("train", "validation") for row in range(3)]
    assert both.count("评论 3") == both.count("评论 12") == 1 and both[1] is both[4] is None
    split = "train" if found.text("train", 0) else "validation"
    assert found.number(split, 0) == 14 and found.number(split, 1) is None


@pytest.mark.usefixtures("arrow_cache")
def test_find_texts_shortens_a_long_text_and_gives_the_reason_for_a_missing_source(tmp_path: Path) -> None:
    texts = ["长" * 1_000_000, "短", "c", "d"]
    files = written(tmp_path / "a.jsonl", texts) | {
        "validation": written(tmp_path / "b.jsonl", ["e", "f"])["train"]
    }
    found = find_texts(DataSettings(data_files=files), {"train": row_hashes(texts)}, 0)
    assert found.texts_of("train", [1, 0]) == ["短", "长" * LONGEST + "…"]
    gone = find_texts(
        DataSettings(data_files={"train": str(tmp_path / "no.csv")}), {"train": row_hashes(texts)}, 0
    )
    assert "no.csv" in gone.reason and gone.text("train", 0) is None and gone.number("train", 0) is None


def test_text_keys_are_equal_for_texts_that_differ_in_case_width_and_white_space_alone() -> None:
    one = from_texts("train", ["Good  Room", "Ａ b", "c", "c"], pairs=["x", "y", "z", "w"])
    two = from_texts("test", [" good room\n", "a B", "c", "d"], pairs=["Ｘ", "y", "z", "w"])
    every = slice(None)
    keys = [text_keys(each, row_hashes(each.texts(every), each.pairs(every))) for each in (one, two)]
    assert keys[0] is not None and keys[1] is not None
    assert (keys[0] == keys[1]).tolist() == [True, True, True, False]
    assert len(set(keys[0].tolist())) == 4  # the second text counts
    assert text_keys(one, row_hashes(["Good  Room"], ["x"])) is None  # other rows
    assert text_keys(two, row_hashes(one.texts(every), one.pairs(every))) is None
