"""Bodies of answers: vectors in the order of the texts, or a sentence."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.endpoint.answer import message_of, read_vectors
from featcache.backbone.endpoint.errors import BadAnswer, HalfAnswer

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3) / 7


def body(vectors: np.ndarray = VECTORS, **changes: Any) -> bytes:
    data = [{"index": number, "embedding": vector.tolist()} for number, vector in enumerate(vectors)]
    return json.dumps({"data": data, "usage": {"total_tokens": 9}} | changes).encode()


def test_vectors_are_in_the_order_of_the_texts() -> None:
    assert np.array_equal(read_vectors(body(), 4).rows, VECTORS) and read_vectors(body(), 4).tokens == 9
    data = json.loads(body())["data"]
    for seed in range(5):
        random.Random(seed).shuffle(data)
        assert np.array_equal(read_vectors(body(data=data), 4).rows, VECTORS)


def test_base64_is_read() -> None:
    data = [
        {"index": number, "embedding": base64.b64encode(vector.tobytes()).decode()}
        for number, vector in enumerate(VECTORS)
    ]
    assert np.array_equal(read_vectors(body(data=data), 4).rows, VECTORS)


def test_tokens_that_are_not_told_are_not_made_up() -> None:
    assert read_vectors(body(usage=None), 4).tokens is None
    assert read_vectors(body(usage={"total_tokens": 0, "prompt_tokens": 7}), 4).tokens == 7


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><title>Log\nin</title>", "a web page: Log in"),
        (body(VECTORS[:3]), "4 texts with 3 vectors"),
        (body(data=[{"index": 0, "embedding": [1.0]}] * 4), "which vector belongs to which text"),
        (body(data=[{"embedding": [1.0]}] * 4), "which vector belongs to which text"),
        (body(data=[{"index": n, "embedding": [1.0] * (1 + n % 2)} for n in range(4)]), "of 1 and 2 numbers"),
        (body(data=[{"index": n, "embedding": []} for n in range(4)]), "vectors of 0 numbers"),
        (body(data=[{"index": n, "embedding": [None]} for n in range(4)]), "another form"),
        (body(data=[{"index": n, "embedding": [[1.0]]} for n in range(4)]), "another form"),
        (body(data=[{"index": n, "embedding": "no base64"} for n in range(4)]), "no vector in base64"),
        (b'{"error": {"message": "model not found"}}', "it says: model not found"),
        (b"[1, 2]", "another form"),
    ],
)
def test_what_is_no_answer_is_a_sentence(content: bytes, said: str) -> None:
    with pytest.raises(BadAnswer) as error:
        read_vectors(content, 4)
    assert said in error.value.what and error.value.hint


@pytest.mark.parametrize("content", [b"", b"  \n", body()[:40], body()[:-2]])
def test_half_an_answer_may_be_asked_for_again(content: bytes) -> None:
    with pytest.raises(HalfAnswer):
        read_vectors(content, 4)


@given(st.binary(max_size=60), st.integers(1, 3))
def test_no_bytes_are_an_unknown_error(content: bytes, count: int) -> None:
    try:
        read_vectors(content, count)
    except (BadAnswer, HalfAnswer):
        pass
    assert len(message_of(content)) <= 203
