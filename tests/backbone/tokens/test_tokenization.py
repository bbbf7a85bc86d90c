"""Token ids end to end: batches of some rows, and counts of unknown tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.tokens.tokenization import Tokens, _end_to_end
from featcache.backbone.tokens.unknown_tokens import UnknownCounter


class _Tokenizer:
    """Two special tokens around a text, and a prompt of which one token is unknown."""

    unk_token_id = 3

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1, 3] if text else []}

    def num_special_tokens_to_add(self, pair: bool) -> int:
        return 2


ROWS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=9)


@given(ROWS, st.randoms(use_true_random=False))
def test_a_batch_has_the_tokens_of_its_rows_in_their_order(rows: list[list[int]], dice: Any) -> None:
    ids, lengths = _end_to_end(rows, np.int32)
    types = (ids % 2).astype(np.uint8)
    picked = np.array(dice.sample(range(len(rows)), dice.randint(1, len(rows))))
    batch = Tokens(ids, lengths, types, np.zeros(len(rows), dtype=bool)).batch(picked)
    wanted = [token for row in picked for token in rows[row]]
    assert batch.input_ids.tolist() == wanted and batch.input_ids.dtype == np.int32
    assert batch.lengths.tolist() == [len(rows[row]) for row in picked]
    assert batch.type_ids is not None and batch.type_ids.tolist() == [token % 2 for token in wanted]


@given(ROWS, st.sampled_from(["", "one prompt"]))
def test_unknown_tokens_are_counted_within_each_text(rows: list[list[int]], prompt: str) -> None:
    counter = UnknownCounter(_Tokenizer(), prompt)
    found = counter.count(*_end_to_end(rows, np.int32), pairs=False)
    around = 2 + 2 * bool(prompt)
    for row, unknown, own in zip(rows, found.unknown.tolist(), found.own.tolist(), strict=True):
        assert own == max(len(row) - around, 0)
        assert unknown == min(max(row.count(3) - bool(prompt), 0), own)
