"""What makes two sets of features equal: explicit values, hashed as canonical JSON.

Two documents are built from the same parts. The *encoder document* is everything that turns a text
into a vector; a head carries it, so that it is never used on other features. The *cache document*
adds views, rows and labels; its hash names the cache file. No paths, times or pickles go in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from featcache.settings import FeatureSettings

FEATURE_FORMAT = 1  # raised when the same document would give other features

Document = TypeVar("Document")


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


def row_chain(hashes: np.ndarray) -> str:
    """SHA-256 over row hashes uint8 `[N, 32]`, in file order: which rows, and in which order."""
    return hashlib.sha256(hashes.tobytes()).hexdigest()


@dataclass(frozen=True)
class TunedPart:
    """The part of a backbone that fine-tuning changed.

    Attributes:
        part: its name, e.g. `top-blocks:2`.
        cut: the first block that was trained; None where the embeddings were trained too.
        weights: SHA-256 of the file of trained weights.
    """

    part: str
    cut: int | None
    weights: str


@dataclass(frozen=True, kw_only=True)
class EncoderDocument:
    """Everything that turns a text into a vector, layer and pooling apart.

    Attributes:
        files: SHA-256 by name of weights, config and tokenizer files.
        prompt: put before every text.
        max_length: tokens kept of a text, special tokens included.
        truncation_side: the end at which longer texts are truncated, `left` or `right`.
        compute: dtype of the forward pass, e.g. `bfloat16`.
        storage: dtype of the features, `float16` or `float32`.
        long_text: how longer texts are encoded: `truncate`, `chunks` or `head-tail`.
        overlap: tokens that neighbouring windows share; None where there are no windows.
        positions: how the position table was extended, see `position_table.Extension`; None where it was not.
        tuned: the fine-tuned part; None for a frozen backbone.
        format: see `FEATURE_FORMAT`.
        unknown: fields that a later version added; they count in fingerprints.
    """

    files: dict[str, str]
    prompt: str
    max_length: int
    truncation_side: str
    compute: str
    storage: str
    long_text: str = "truncate"
    overlap: int | None = None
    positions: dict[str, Any] | None = None
    tuned: TunedPart | None = None
    format: int = field(default_factory=lambda: FEATURE_FORMAT)
    unknown: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that is hashed. Optional fields are left out where they are None: documents made
        before these fields existed keep their fingerprints."""
        return {
            "format": self.format,
            "files": dict(self.files),
            "prompt": self.prompt,
            "max_length": self.max_length,
            "truncation_side": self.truncation_side,
            "long_text": self.long_text,
            **({} if self.overlap is None else {"overlap": self.overlap}),
            **({} if self.positions is None else {"positions": dict(self.positions)}),
            "dtype": {"compute": self.compute, "storage": self.storage},
            **({} if self.tuned is None else {"tuned": asdict(self.tuned)}),
            **self.unknown,
        }

    @classmethod
    def from_json(cls, content: Any) -> EncoderDocument:
        """The document that `to_json` wrote.

        Raises:
            ValueError: a field is missing or has another type.
        """
        return _convert(cls, _encoder_fields(content))


@dataclass(frozen=True)
class RowsPart:
    """The rows of a cache document: their number, and the chain of their hashes."""

    count: int
    chain: str

    @classmethod
    def of(cls, hashes: np.ndarray) -> RowsPart:
        """From row hashes uint8 `[N, 32]`, in file order."""
        return cls(len(hashes), row_chain(hashes))


@dataclass(frozen=True)
class LabelsPart:
    """The labels of a cache document; only those of multi-label data have a `kind`."""

    chain: str
    names: tuple[str, ...]
    kind: str | None = None

    @classmethod
    def of(cls, labels: np.ndarray, names: Sequence[str]) -> LabelsPart:
        """From labels int64 `[N]`, indexes into `names`; or multi-hot uint8 `[N, C]`."""
        several = labels.ndim == 2
        content = np.ascontiguousarray(labels, dtype="u1" if several else "<i8")
        chain = hashlib.sha256(content.data).hexdigest()
        return cls(chain, tuple(names), "multi-label" if several else None)


@dataclass(frozen=True)
class CacheDocument:
    """What one cache file holds; its fingerprint names the file.

    Attributes:
        views: canonical view names such as `last/cls`, sorted.
        unknown: fields that a later version added; they count in fingerprints.
    """

    encoder: EncoderDocument
    views: tuple[str, ...]
    rows: RowsPart
    labels: LabelsPart
    unknown: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The JSON object that is hashed and stored in the cache file."""
        labels = {"chain": self.labels.chain, "names": list(self.labels.names)}
        return {
            "encoder": self.encoder.to_json(),
            "views": list(self.views),
            "rows": asdict(self.rows),
            "labels": labels if self.labels.kind is None else {**labels, "kind": self.labels.kind},
            **self.unknown,
        }

    @classmethod
    def from_json(cls, content: Any) -> CacheDocument:
        """The document that `to_json` wrote.

        Raises:
            ValueError: a field is missing or has another type.
        """
        found = known_fields(cls, content)
        return _convert(cls, found | {"encoder": _encoder_fields(found.get("encoder"))})


@dataclass(frozen=True, kw_only=True)
class RequestedEncoder:
    """The encoder's part of a request: the settings as asked, which need no model to be loaded.

    Attributes:
        files: SHA-256 by name of the model's files.
        dtype: of the forward pass, as asked; may be `auto`.
        unknown: fields that a later version added; requests that differ in them are not equal.
    """

    files: dict[str, str]
    prompt: str
    max_length: int
    dtype: str
    storage: str
    extend_positions: str = "none"
    long_text: str = "truncate"
    overlap: int | None = None
    format: int = 1
    unknown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Mapping[str, str], dtype: str, features: FeatureSettings) -> RequestedEncoder:
        return cls(
            files=dict(files),
            prompt=features.prompt,
            max_length=features.max_length,
            dtype=dtype,
            storage=features.storage,
            extend_positions=features.extend_positions,
            long_text=features.long_text,
            overlap=features.overlap if features.long_text == "chunks" else None,
            format=FEATURE_FORMAT,
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the settings. Fields that the first requests did not have are left out at their
        defaults, so that those requests still answer."""
        newer = {
            name: getattr(self, name)
            for name, default in (
                ("extend_positions", "none"), ("long_text", "truncate"), ("overlap", None), ("format", 1),
            )
            if getattr(self, name) != default
        }  # fmt: skip
        first = {name: getattr(self, name) for name in ("files", "prompt", "max_length", "dtype", "storage")}
        return {**first, **newer, **self.unknown}


@dataclass(frozen=True)
class Request:
    """What was asked for a split, in content hashes and settings: the key of a repeated call.

    Attributes:
        source: see `data.split.describe_source`.
        views: in a record, every way the file's views may be asked for, to their canonical names.
        unknown: fields that a later version added; requests that differ in them are not equal.
    """

    split: str
    source: dict[str, Any]
    encoder: RequestedEncoder
    views: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """The JSON object of the request without its views: what a repeated request must be equal to."""
        return {
            "split": self.split,
            "source": dict(self.source),
            "encoder": self.encoder.to_json(),
            **self.unknown,
        }

    def to_json(self) -> dict[str, Any]:
        """The JSON object that is kept in a record."""
        return {**self.key(), "views": dict(self.views)}

    @classmethod
    def from_json(cls, content: Any) -> Request:
        """The request that `to_json` wrote.

        Raises:
            ValueError: a field is missing or has another type.
        """
        found = known_fields(cls, content)
        return _convert(cls, found | {"encoder": known_fields(RequestedEncoder, found.get("encoder"))})


def known_fields(kind: type, content: Any) -> dict[str, Any]:
    """The JSON object `content` with all that is no field of the dataclass `kind` under `unknown`.

    Raises:
        ValueError: `content` is no JSON object.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"an object is needed, not {type(content).__name__}")
    names = {each.name for each in fields(kind)} - {"unknown"}
    known = {name: value for name, value in content.items() if name in names}
    return known | {"unknown": {name: value for name, value in content.items() if name not in names}}


def _encoder_fields(content: Any) -> dict[str, Any]:
    """The fields of `EncoderDocument` in its JSON object, whose object `dtype` has two of them."""
    found = known_fields(EncoderDocument, content)
    dtype = known_fields(EncoderDocument, found["unknown"].pop("dtype", None))
    return found | {name: dtype[name] for name in ("compute", "storage") if name in dtype}


def _convert(kind: type[Document], content: dict[str, Any]) -> Document:
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from None


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
