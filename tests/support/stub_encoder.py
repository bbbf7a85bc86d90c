"""An encoder that hashes texts, for tests of extraction that need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from featcache.extraction import partition
from featcache.extraction.encode_units import LocalUnitEncoder
from featcache.extraction.encoder_spec import EncoderSpec
from featcache.extraction.job import Job
from tests.support.documents import encoder_document

WIDTH = 96


def vector(text: str) -> np.ndarray:
    """float16 `[WIDTH]`, different for every text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float16)


@dataclass(frozen=True)
class StubTokens:
    """Texts with their lengths in characters."""

    texts: list[str]
    lengths: np.ndarray
    unknown: None = None


STUB_SPEC = EncoderSpec(
    document=encoder_document(),
    views={"last/cls": "last/cls"},
    width=WIDTH,
    batch_tokens=64,
    device="cpu",
    dtype="float32",
)


class StubEncoder:
    """Encodes a text by its hash; `encoded` has the texts in order."""

    backbone = SimpleNamespace(fused=())

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def prepare(self, texts: int) -> None:
        """Nothing has to be prepared."""

    def tokenize(self, texts: list[str], pairs: list[str] | None = None) -> StubTokens:
        """Count the characters of the texts."""
        assert pairs is None
        return StubTokens(texts, np.array([len(text) for text in texts]))

    def encode(self, tokens: StubTokens, step: Callable[[int, int], None] = lambda *_: None) -> Any:
        """The vectors of the texts, as one batch."""
        self.encoded += tokens.texts
        step(len(tokens.texts), int(tokens.lengths.sum()))
        return SimpleNamespace(
            views={"last/cls": np.stack([vector(text) for text in tokens.texts])},
            n_tokens=tokens.lengths.astype(np.int32),
            truncated=np.zeros(len(tokens.texts), dtype=bool),
        )


@contextmanager
def stubbed(unit_rows: int) -> Iterator[StubEncoder]:
    """Have `extract_splits` encode with the stub, in commit units of `unit_rows` rows."""
    stub = StubEncoder()

    def stub_units(job: Job, split: str) -> LocalUnitEncoder:
        job._unit_encoder = LocalUnitEncoder(STUB_SPEC, cast(Any, stub))
        return job._unit_encoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "unit_encoder", stub_units)
        patch.setattr(partition, "UNIT_ROWS", unit_rows)
        yield stub
