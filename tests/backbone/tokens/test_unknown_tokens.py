"""The share of a text's own tokens that the vocabulary does not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.backbone.tokens.unknown_tokens import UnknownTokens, mostly_unknown_text, unknown_text
from tests.support.stock import encoder, load, loaded

Folder = Callable[[str], Path]
THAI = "สวัสดี"  # no character of it is in the tiny vocabulary


def counted(
    folder: Path, texts: list[str], pairs: list[str] | None = None, **changes: object
) -> UnknownTokens:
    found = encoder(loaded(folder), **changes).tokenize(texts, pairs).unknown
    assert found is not None
    return found


def test_special_tokens_do_not_count(tiny: Folder) -> None:
    found = counted(tiny("bert"), ["good book", f"good {THAI}", THAI, f"{THAI} {THAI} good 的"])
    np.testing.assert_array_equal(found.unknown, [0, 1, 1, 2])
    np.testing.assert_array_equal(found.own, [2, 2, 1, 4])
    np.testing.assert_allclose(found.shares, [0, 0.5, 1, 0.5])
    assert found.share == 4 / 9


@pytest.mark.parametrize("prompt", ["good ", f"{THAI} good "])
def test_the_prompt_does_not_count(tiny: Folder, prompt: str) -> None:
    found = counted(tiny("bert"), [THAI, "good book"], prompt=prompt)
    np.testing.assert_array_equal(found.shares, [1, 0])


def test_both_texts_of_a_pair_count(tiny: Folder) -> None:
    found = counted(tiny("bert"), ["good", THAI], [f"{THAI} book", THAI])
    np.testing.assert_array_equal(found.unknown, [1, 2])
    np.testing.assert_array_equal(found.own, [3, 2])


@pytest.mark.parametrize("long_text", ["truncate", "chunks", "head-tail"])
def test_long_texts(tiny: Folder, long_text: str) -> None:
    """Truncated texts by the tokens that are kept, the others as a whole."""
    texts = [f"{THAI} " * 8 + "good " * 24, "good"]
    found = counted(tiny("bert"), texts, max_length=18, long_text=long_text, overlap=4)
    np.testing.assert_array_equal(found.own, [16 if long_text == "truncate" else 32, 1])
    np.testing.assert_array_equal(found.unknown, [8, 0])


def test_a_tokenizer_without_an_unknown_token(bert: Path) -> None:
    path = bert / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["unk_token"] = settings["cls_token"]  # as GPT-2 has one token for all that
    path.write_text(json.dumps(settings), encoding="utf-8")
    found = encoder(load(bert)).tokenize(["good", THAI]).unknown
    assert found is not None and found.unknown.tolist() == [0, 0]


def test_no_texts(tiny: Folder) -> None:
    assert encoder(loaded(tiny("bert"))).tokenize([]).unknown_shares.shape == (0,)
    assert UnknownTokens(np.zeros(1, np.int32), np.zeros(1, np.int32)).share is None


def test_what_is_said() -> None:
    assert unknown_text("train", 0.031) == "train: 3.1% of the tokens are unknown to the model's vocabulary"
    assert "language of these texts?" in unknown_text("train", 0.051)
    assert mostly_unknown_text(2, 3).startswith("2 of 3 texts are mostly unknown")
