"""Texts and vectors that cannot be stored: each is named by its row, and the work done before is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import BackboneError, CacheError, FeatcacheError, SourceError
from tests.support.extraction import (
    TRAIN,
    Case,
    reference_hash,
)


def test_a_text_of_a_megabyte(case: Case) -> None:
    rows = case.rows()
    rows[3]["text"] = "好书" * 170_000
    case.write(rows)
    result = case.extract()
    assert (result.encoded, result.truncated) == (1, 1)
    file = case.find()
    assert file.sealed.column("n_tokens")[3] == 64 and file.sealed.column("truncated").sum() == 1
    assert file.sealed.column("row_hash")[3].tobytes() == reference_hash(rows[3]["text"])


@pytest.mark.parametrize("text", ["", "  \n\t", "\u3000", None])
def test_an_empty_text_is_named_before_any_work(case: Case, text: str | None, passes: list[int]) -> None:
    rows = case.rows()
    rows[5]["text"] = text
    case.write(rows)
    before = sorted(case.cache.rglob("*"))
    with pytest.raises(SourceError, match=r"row 6 of train has no .*text"):
        case.extract()
    assert sorted(case.cache.rglob("*")) == before and passes == []
    result = case.extract(skip_bad_rows=True)
    assert (result.rows, result.encoded) == (TRAIN - 1, 0)
    assert any("row 6 of train" in note for note in result.notes)
    hashes = case.find(skip_bad_rows=True).sealed.column("row_hash")
    assert hashes[5].tobytes() == reference_hash(rows[6]["text"])


@pytest.mark.parametrize("text", ["\u200b", "\x01\x02", "\u200d\ufeff"])
def test_a_text_without_any_token_is_named(case: Case, tiny: Callable[[str], Path], text: str) -> None:
    """Not blank, yet nothing is left of it for a model that puts no special tokens around."""
    rows = case.rows()
    rows[5]["text"] = text
    case.write(rows)
    with pytest.raises(FeatcacheError, match="row 6 of train"):
        case.extract(model=str(tiny("gpt2")))
    case.extract()  # [CLS] and [SEP] are tokens


def test_unusual_texts(case: Case) -> None:
    rows = case.rows()
    odd = ["\0", "\u202e好", "👩‍👩‍👧", "[CLS] [SEP] [PAD]", "a\r\nb", "\ufeff好", "[UNK]", "e\u0301"]
    case.write([*rows, *({"text": text, "label": "good"} for text in odd)])
    assert case.extract().encoded == len(odd)
    hashes = case.find().sealed.column("row_hash")[TRAIN:]
    assert [row.tobytes() for row in hashes] == [reference_hash(text) for text in odd]
    assert np.isfinite(case.features()).all()


def with_weights(case: Case, name: str, change: Callable[[Any], None]) -> Case:
    from safetensors.torch import load_file, save_file

    mine = case.own_model()
    weights = load_file(mine.model / "model.safetensors")
    change(weights[name])
    save_file(weights, mine.model / "model.safetensors", metadata={"format": "pt"})
    return mine


def test_nan_names_the_row(case: Case) -> None:
    from tests.support.tiny import VOCABULARY

    token = VOCABULARY.index("地")
    mine = with_weights(
        case, "embeddings.word_embeddings.weight", lambda values: values[token].fill_(float("nan"))
    )
    rows = mine.rows()
    assert not any("地" in row["text"] for row in rows)
    rows[41]["text"] = "好地"
    rows[2]["text"] = ""
    mine.write(rows)
    with pytest.raises(BackboneError, match="row 42 of train: its last/cls features are NaN") as caught:
        mine.extract(skip_bad_rows=True)
    assert "--dtype float32" in (caught.value.hint or "")
    assert len(mine.files()) == 2


def test_too_large_for_float16(case: Case) -> None:
    def scale(values: Any) -> None:
        values.mul_(1e6)

    mine = with_weights(case, "encoder.layer.2.output.LayerNorm.weight", scale)
    with pytest.raises(BackboneError, match=r"row \d+ of train: .* too large for float16") as caught:
        mine.extract()
    assert caught.value.hint == "try --storage float32"
    mine.extract(storage="float32")
    values = mine.features(storage="float32")
    assert np.isfinite(values).all() and np.abs(values).max() > 65504


def test_a_view_that_overflows_is_named(case: Case) -> None:
    mine = with_weights(case, "encoder.layer.1.output.LayerNorm.weight", lambda values: values.mul_(1e6))
    mine.extract()
    with pytest.raises(BackboneError, match="-2/mean features are too large"):
        mine.extract(views="last/cls,-2/mean")


def test_a_full_disk_is_said_before_anything_is_encoded(
    case: Case, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(case.cache)
    free = shutil.disk_usage(case.folder)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(CacheError, match=r"the cache of train needs .* has 100\.0 kB free"):
        case.extract()
    assert passes == [] and case.files() == []
    # What can be known without the model is said before it is loaded.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=100))
    monkeypatch.setattr(
        "featcache.backbone.load.load_backbone", lambda *_: pytest.fail("the model was loaded")
    )
    with pytest.raises(CacheError, match=r"the cache of train needs .* has 100 B free"):
        case.extract()
    monkeypatch.undo()
    assert case.extract().encoded == TRAIN
