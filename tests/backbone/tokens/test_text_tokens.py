"""How much of a text is read, and a tokenizer that several threads use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.encoder import Encoder
from tests.support.stock import encoder, load, sentence

LETTERS = st.text(st.sampled_from("好坏房间 \n,!ab😀é"), min_size=1, max_size=60).filter(str.strip)


@pytest.fixture(scope="module")
def made(tiny: Callable[[str], Path]) -> dict[str, Encoder]:
    """Encoders of at most 16 tokens, by what they do with longer texts."""
    folder = tiny("bert")
    kinds: dict[str, dict[str, Any]] = {
        "truncate": {}, "prompt": {"prompt": "好 : "}, "head-tail": {"long_text": "head-tail"},
        "chunks": {"long_text": "chunks", "overlap": 2},
    }  # fmt: skip
    return {name: encoder(load(folder), "last/mean", max_length=16, **more) for name, more in kinds.items()}


@pytest.mark.parametrize("kind", ["truncate", "prompt", "head-tail", "chunks"])
@given(text=LETTERS)
def test_what_is_unread_are_the_tokens_that_are_cut_off(
    kind: str, text: str, made: dict[str, Encoder]
) -> None:
    own = made[kind]
    kept, found = own.tokenize([text]), own.measure(text)
    assert found.truncated == bool(kept.truncated[0])
    assert found.windows == (1 if kept.windows is None else kept.windows.counts[0])
    whole = own._tokenization._coded([own.prompt + text])
    assert found.count == len(whole["input_ids"][0])
    places = own._tokenization._places(whole.encodings[0], 0)
    lost = [p for p in places if any(a <= p[0] and p[1] <= b for a, b in found.unread) and p[1] > p[0]]
    assert len(lost) == (found.count - int(kept.lengths[0]) if found.truncated else 0)
    assert list(found.unread) == sorted(found.unread) and all(a < b <= len(text) for a, b in found.unread)


def test_of_a_pair_both_texts_can_be_cut(made: dict[str, Encoder]) -> None:
    first, second = sentence(20), sentence(14, seed=1)
    found = made["truncate"].measure(first, second)
    (a,), (b,) = found.unread, found.unread_pair
    assert found.count == 37 and (a[1], b[1]) == (len(first), len(second))
    assert len(first[: a[0]].split()) + len(second[: b[0]].split()) == 16 - 3


def test_the_beginning_is_cut_where_the_tokenizer_says_so(tiny: Callable[[str], Path]) -> None:
    own = encoder(load(tiny("bert")), "last/mean", max_length=16)
    own.backbone.tokenizer.truncation_side = "left"
    text = sentence(20)
    ((begin, end),) = own.measure(text).unread
    assert begin == 0 and len(text[end:].split()) == 14


def test_threads_that_tokenise_and_measure_do_not_change_each_others_length(made: dict[str, Encoder]) -> None:
    own, text = made["truncate"], sentence(300)

    def tokenised(_: int) -> tuple[int, int]:
        return int(own.tokenize([text] * 8).lengths.max()), own.measure(text).count

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(tokenised, range(80))) == {(16, 302)}
