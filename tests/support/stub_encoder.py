"""An encoder that is a hash: real extraction code around it, and what it says of a text is known at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featcache.extraction import api as extract_module
from featcache.extraction import partition as division
from tests.support.documents import encoder_document

WIDTH = 96


def vector(text: str) -> np.ndarray:
    """float16 `[WIDTH]`, another one for every text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float16)


@dataclass(frozen=True)
class StubTokens:
    texts: list[str]
    lengths: np.ndarray


class StubEncoder:
    """As much of `encode.Encoder` as `extract` asks for."""

    notes: tuple[str, ...] = ()
    batch_tokens = 64
    storage = np.dtype("<f2")
    views = (SimpleNamespace(name="last/cls", layer=1),)
    document = encoder_document()
    backbone = SimpleNamespace(
        num_blocks=1,
        prepare=lambda rows: None,
        device="cpu",
        dtype_name="float32",
        packing="packed",
        packing_note="",
        fused=(),
        model=SimpleNamespace(config=SimpleNamespace(hidden_size=WIDTH)),
    )

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def tokenize(self, texts: list[str], pairs: list[str] | None = None) -> StubTokens:
        assert pairs is None
        return StubTokens(texts, np.array([len(text) for text in texts]))

    def encode(self, tokens: StubTokens, step: Callable[[int, int], None] = lambda *_: None) -> Any:
        self.encoded += tokens.texts
        step(len(tokens.texts), int(tokens.lengths.sum()))
        return SimpleNamespace(
            views={"last/cls": np.stack([vector(text) for text in tokens.texts])},
            n_tokens=tokens.lengths.astype(np.int32),
            truncated=np.zeros(len(tokens.texts), dtype=bool),
        )


@contextmanager
def stubbed(block_rows: int) -> Iterator[StubEncoder]:
    """`extract` encodes by the stub, in blocks of so many rows."""
    stub = StubEncoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_module.Job, "encoder", lambda job, split: stub)
        patch.setattr(division, "BLOCK_ROWS", block_rows)
        yield stub
