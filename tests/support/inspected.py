"""Made-up splits with planted duplicates, leaks and wrong labels, for tests of what is found in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featcache.cache.catalog import Features
from featcache.inspection.inspection import InspectedSplit
from tests.support.documents import encoder_document
from tests.support.saved_runs import hashes

NAMES = ("a", "b", "c")


def part(
    split: str,
    x: np.ndarray,
    y: np.ndarray,
    texts: list[str],
    names: tuple[str, ...] = NAMES,
    tokens: np.ndarray | None = None,
) -> InspectedSplit:
    """A cached split; texts of more than 20 tokens were truncated."""
    features = Features(split, "last/mean", x, y, names, hashes(texts), encoder_document(), "0", Path())
    n_tokens = np.full(len(y), 10, np.int32) if tokens is None else tokens
    return InspectedSplit(features, n_tokens, n_tokens > 20, 20)


def splits(rows: int = 240, width: int = 40, noise: float = 1.0) -> dict[str, InspectedSplit]:
    """Train, validation and test without any fault; text i of a split is `<split> i`.

    No two rows are near each other, and as in a Transformer all point much the same way.
    """
    centres, made = np.random.default_rng(99).normal(size=(3, width)), {}
    for seed, (name, count) in enumerate({"train": rows, "validation": rows // 3, "test": rows // 3}.items()):
        draw = np.random.default_rng(seed)
        y = draw.integers(0, 3, count)
        x = (centres[y] + noise * draw.normal(size=(count, width)) + 30).astype(np.float32)
        made[name] = part(name, x, y, [f"{name} {row}" for row in range(count)])
    return made


def changed(
    parts: Mapping[str, InspectedSplit], split: str, rows: Mapping[int, tuple[str, int, float]]
) -> dict[str, InspectedSplit]:
    """`parts` with rows of `split` made copies: row -> (split copied from, its row, noise; 0: same text)."""
    found = dict(parts)
    x, y = parts[split].features.x.copy(), parts[split].features.y.copy()
    own = parts[split].features.row_hash.copy()
    for row, (source, other, noise) in rows.items():
        taken = parts[source].features
        x[row] = taken.x[other] + noise * np.random.default_rng(row).normal(size=x.shape[1])
        y[row] = taken.y[other]
        if noise == 0:
            own[row] = taken.row_hash[other]
    old = parts[split]
    features = Features(
        split, "last/mean", x, y, old.features.label_names, own, encoder_document(), "0", Path()
    )
    found[split] = InspectedSplit(features, old.n_tokens, old.truncated, old.max_length)
    return found
