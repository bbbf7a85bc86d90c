"""What makes two sets of features equal: explicit values, hashed as canonical JSON.

Two documents are built from the same parts. The *encoder document* is everything that turns a text
into a vector; a head carries it, so that it is never used on other features. The *cache document*
adds views, rows and labels; its hash names the cache file. No paths, times or pickles go in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.settings import FeatureSettings

FEATURE_FORMAT = 1  # raised when the same document would give other features


@dataclass(frozen=True)
class Difference:
    """One field in which two documents differ; `None` stands for a field that is not there."""

    field: str
    cached: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.field} (cached {_short(self.cached)}, wanted {_short(self.wanted)})"


def canonical(document: Any) -> bytes:
    """`document` as JSON bytes: sorted keys, no blanks, no NaN; equal values give equal bytes."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def fingerprint(document: Any) -> str:
    """SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical(document)).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_hash(text: str | None, pair: str | None = None) -> bytes:
    """SHA-256 over text and pair, each tagged and length-prefixed: `None` is not `""`."""
    digest = hashlib.sha256()
    for part in (text, pair):
        if part is None:
            digest.update(b"\x00")
        else:
            content = part.encode("utf-8")
            digest.update(b"\x01" + len(content).to_bytes(8, "little"))
            digest.update(content)
    return digest.digest()


def row_hashes(texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
    """Row hashes as uint8 `[N, 32]`."""
    both: Iterable[tuple[str, str | None]] = (
        zip(texts, pairs, strict=True) if pairs is not None else ((text, None) for text in texts)
    )
    joined = b"".join(row_hash(text, pair) for text, pair in both)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)


def encoder_document(
    *,
    files: Mapping[str, str],
    prompt: str,
    max_length: int,
    truncation_side: str,
    compute: str,
    storage: str,
    long_text: str = "truncate",
    overlap: int | None = None,
    positions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that turns a text into a vector, layer and pooling apart.

    What came later than the first documents is left out where it changes nothing, so that features
    and heads of that time are still found.

    Args:
        files: SHA-256 by name of weights, config and tokenizer files.
        prompt: what is put before every text.
        max_length: tokens kept of a text, special tokens included.
        truncation_side: the end at which longer texts are cut, `left` or `right`.
        compute: dtype of the forward pass, e.g. `bfloat16`.
        storage: dtype of the features, `float16` or `float32`.
        long_text: what is done with texts longer than that: `truncate`, `chunks` or `head-tail`.
        overlap: tokens that neighbouring windows share; None where there are no windows.
        positions: how the position table was extended, see `positions.Extension`; None where it was not.
    """
    return {
        "format": FEATURE_FORMAT,
        "files": dict(files),
        "prompt": prompt,
        "max_length": max_length,
        "truncation_side": truncation_side,
        "long_text": long_text,
        **({} if overlap is None else {"overlap": overlap}),
        **({} if positions is None else {"positions": dict(positions)}),
        "dtype": {"compute": compute, "storage": storage},
    }


def later_settings(features: FeatureSettings) -> dict[str, Any]:
    """What requests have held only since these settings exist: left out where they change nothing.

    Requests recorded before then are equal to those made now with the settings at their defaults.
    """
    asked: dict[str, Any] = {}
    if features.extend_positions != "none":
        asked["extend_positions"] = features.extend_positions
    if features.long_text != "truncate":
        asked["long_text"] = features.long_text
    if features.long_text == "chunks":
        asked["overlap"] = features.overlap
    if FEATURE_FORMAT != 1:
        asked["format"] = FEATURE_FORMAT
    return asked


def row_chain(hashes: np.ndarray) -> str:
    """SHA-256 over row hashes uint8 `[N, 32]`, in file order: which rows, and in which order."""
    return hashlib.sha256(hashes.tobytes()).hexdigest()


def cache_document(
    encoder: Mapping[str, Any],
    views: Iterable[str],
    hashes: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
) -> dict[str, Any]:
    """What one cache file holds.

    Args:
        encoder: see `encoder_document`.
        views: canonical view names such as `last/cls`.
        hashes: uint8 `[N, 32]`, row hashes in file order.
        labels: int64 `[N]`, indexes into `label_names`; or multi-hot uint8 `[N, C]`.
    """
    return {
        "encoder": dict(encoder),
        "views": sorted(views),
        "rows": {"count": len(hashes), "chain": row_chain(hashes)},
        "labels": labels_document(labels, label_names),
    }


def labels_document(labels: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """The labels' part of a cache document; only that of multi-label data has a `kind`."""
    several = labels.ndim == 2
    content = np.ascontiguousarray(labels, dtype="u1" if several else "<i8")
    document = {"chain": hashlib.sha256(content.data).hexdigest(), "names": list(label_names)}
    return {**document, "kind": "multi-label"} if several else document


def differences(cached: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Difference]:
    """The fields, by dotted path, in which two documents differ; none if and only if their hashes agree."""
    found: list[Difference] = []
    for key in sorted(set(cached) | set(wanted)):
        a, b = cached.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [
                Difference(f"{key}.{inner.field}", inner.cached, inner.wanted) for inner in differences(a, b)
            ]
        elif (key in cached) != (key in wanted) or canonical(a) != canonical(b):
            found.append(Difference(key, a, b))
    return found


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text):
        return text[:12]
    return repr(text if len(text) <= 40 else text[:37] + "...") if isinstance(value, str) else text[:60]
