"""Encoder documents, cache documents and requests with made-up content, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.fingerprint import (
    CacheDocument,
    Dtypes,
    EncoderDocument,
    LabelsPart,
    Request,
    RequestedEncoder,
    RowsPart,
    row_hashes,
)


def encoder_document(**changes: Any) -> EncoderDocument:
    """The document of a float32 encoder of short texts, with `changes` to its fields and its dtypes."""
    dtypes = {"compute": "float32", "storage": "float16"}
    dtypes |= {name: changes.pop(name) for name in dtypes if name in changes}
    fields: dict[str, Any] = {
        "files": {},
        "prompt": "",
        "max_length": 9,
        "truncation_side": "right",
        "dtype": Dtypes(**dtypes),
    }
    return EncoderDocument(**(fields | changes))


def cache_document(
    encoder: EncoderDocument | None = None,
    views: Sequence[str] = ("last/cls",),
    hashes: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    label_names: Sequence[str] = ("bad", "good"),
) -> CacheDocument:
    """The document of a cache file of these rows; by default of two texts with one label each."""
    rows = RowsPart.of(row_hashes(["a", "b"]) if hashes is None else hashes)
    of_labels = LabelsPart.of(np.array([1, 0]) if labels is None else labels, label_names)
    return CacheDocument(encoder or encoder_document(), tuple(sorted(views)), rows, of_labels)


def make_request(
    split: str = "train",
    views: dict[str, str] | None = None,
    source: dict[str, Any] | None = None,
    **changes: Any,
) -> Request:
    """A request for `split`, with `changes` to the fields of its encoder."""
    fields: dict[str, Any] = {
        "files": {"config.json": "0"},
        "prompt": "",
        "max_length": 512,
        "dtype": "auto",
        "storage": "float16",
    }
    return Request(split, source or {}, RequestedEncoder(**(fields | changes)), views or {})
