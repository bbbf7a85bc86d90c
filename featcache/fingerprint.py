"""What makes two sets of features equal: explicit values, hashed as canonical JSON.

Two documents are built from the same parts. The *encoder document* is everything that turns a text
into a vector; a head carries it, so that it is never used on other features. The *cache document*
adds views, rows and labels; its hash names the cache file. No paths, times or pickles go in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.json_document import JsonDocument as JsonDocument
from featcache.settings import FeatureSettings

FEATURE_FORMAT = 1  # raised when the same document would give other features
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single-label", "multi-label", "regression"  # tasks
_STORED = {SINGLE_LABEL: "<i8", MULTI_LABEL: "u1", REGRESSION: "<f8"}  # types of labels in a file


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
    return hashlib.sha256(_tagged(text) + _tagged(pair)).digest()


def _tagged(part: str | None) -> bytes:
    if part is None:
        return b"\x00"
    content = part.encode("utf-8")
    return b"\x01" + len(content).to_bytes(8, "little") + content


def row_hashes(texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
    """Row hashes as uint8 `[N, 32]`."""
    both: Iterable[tuple[str, str | None]] = (
        zip(texts, pairs, strict=True) if pairs is not None else ((text, None) for text in texts)
    )
    joined = b"".join(row_hash(text, pair) for text, pair in both)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)


def row_keys(hashes: np.ndarray) -> np.ndarray:
    """The first 64 bits of row hashes uint8 `[N, 32]`: uint64 `[N]`."""
    return np.ascontiguousarray(hashes[:, :8]).view(np.uint64).ravel()


def row_chain(hashes: np.ndarray) -> str:
    """SHA-256 over row hashes uint8 `[N, 32]`, in file order: which rows, and in which order."""
    return hashlib.sha256(hashes.tobytes()).hexdigest()


@dataclass(frozen=True)
class TunedPart(JsonDocument):
    """The part of a backbone that fine-tuning changed.

    Attributes:
        part: its name, e.g. `top-blocks:2`.
        cut: the first block that was trained; None where the embeddings were trained too.
        weights: SHA-256 of the file of trained weights.
    """

    part: str
    cut: int | None
    weights: str


@dataclass(frozen=True)
class Dtypes(JsonDocument):
    """Of the forward pass, e.g. `bfloat16`, and of the stored features, `float16` or `float32`."""

    compute: str
    storage: str


@dataclass(frozen=True)
class VectorsPart(JsonDocument):
    """Vectors that were imported, by what their user says of them; nothing here can encode a text.

    Attributes:
        name: under which they were imported.
        width: D, numbers in each vector.
        model: what made them, in the user's words; None where that was not said.
    """

    name: str
    width: int
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class EndpointPart(JsonDocument):
    """The endpoint that makes the vectors.

    Attributes:
        address, model, revision: see `backbone.endpoint.model.EndpointModel`.
        width: numbers in each vector that the server sends.
        dimensions: numbers that the server is asked for; None: not asked.
    """

    address: str
    model: str
    width: int
    dimensions: int | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderDocument(JsonDocument):
    """Everything that turns a text into a vector, layer and pooling apart.

    Attributes:
        format: see `FEATURE_FORMAT`.
        files: SHA-256 by name of weights, config and tokenizer files, and of the files of the modules that
            follow the pooling where a view has such steps.
        prompt: put before every text.
        lower_case: whether texts are lower-cased first, beyond what the tokenizer does by itself.
        pool_prompt: whether the prompt's tokens are pooled too.
        max_length: tokens kept of a text, special tokens included; 0 where an endpoint decides.
        truncation_side: the end at which longer texts are truncated, `left` or `right`.
        long_text: how longer texts are encoded: `truncate`, `chunks` or `head-tail`.
        overlap: tokens that neighbouring windows share; None where there are no windows.
        positions: how the position table was extended, see `position_table.Extension`; None where it was not.
        tuned: the fine-tuned part; None for a frozen backbone.
        vectors: what stands for an encoder where the vectors were imported; None for one that encodes.
        endpoint: the server that encodes; None for a backbone on this machine, which has `files`.
        named: of several encoders side by side each by its name; the other fields then say nothing of them.
    """

    format: int = field(default_factory=lambda: FEATURE_FORMAT)
    files: dict[str, str]
    prompt: str
    lower_case: bool = False
    pool_prompt: bool = True
    max_length: int
    truncation_side: str
    long_text: str = field(default_factory=lambda: "truncate")
    overlap: int | None = None
    positions: dict[str, Any] | None = None
    dtype: Dtypes
    tuned: TunedPart | None = None
    vectors: VectorsPart | None = None
    endpoint: EndpointPart | None = None
    named: tuple[NamedEncoder, ...] = ()


@dataclass(frozen=True)
class NamedEncoder(JsonDocument):
    """One of several encoders whose views a head reads side by side; the main one has the name ""."""

    name: str
    encoder: EncoderDocument


def joined_document(encoders: Mapping[str, EncoderDocument]) -> EncoderDocument:
    """The document of several encoders by their names, whose order does not matter."""
    named = tuple(NamedEncoder(name, encoders[name]) for name in sorted(encoders))
    first = named[0].encoder
    return EncoderDocument(
        files={},
        prompt="",
        max_length=max(each.encoder.max_length for each in named),
        truncation_side=first.truncation_side,
        dtype=first.dtype,
        named=named,
    )


@dataclass(frozen=True)
class RowsPart(JsonDocument):
    """The rows of a cache document: their number, and the chain of their hashes."""

    count: int
    chain: str

    @classmethod
    def of(cls, hashes: np.ndarray) -> RowsPart:
        """From row hashes uint8 `[N, 32]`, in file order."""
        return cls(len(hashes), row_chain(hashes))


@dataclass(frozen=True)
class LabelsPart(JsonDocument):
    """The labels of a cache document; those of one class a row have no `kind`, numbers have no names."""

    chain: str
    names: tuple[str, ...]
    kind: str | None = None

    @classmethod
    def of(cls, labels: np.ndarray, names: Sequence[str]) -> LabelsPart:
        """From labels int64 `[N]`, indexes into `names`; multi-hot uint8 `[N, C]`; or float64 `[N]`."""
        task = task_of(labels)
        content = np.ascontiguousarray(labels, dtype=_STORED[task])
        chain = hashlib.sha256(content.data).hexdigest()
        return cls(chain, tuple(names), None if task == SINGLE_LABEL else task)


@dataclass(frozen=True)
class CacheDocument(JsonDocument):
    """What one cache file holds; its fingerprint names the file.

    Attributes:
        views: canonical view names such as `last/cls`, sorted.
        imported: XXH3-128 of the bytes of imported vectors, in the order of the rows and as they are stored;
            None where the encoder says which vectors the rows have.
    """

    encoder: EncoderDocument
    views: tuple[str, ...]
    rows: RowsPart
    labels: LabelsPart
    imported: str | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())


@dataclass(frozen=True, kw_only=True)
class StatesDocument(JsonDocument):
    """All that the token states of some rows depend on; its hash names their file.

    Attributes:
        cut: the block before which the states are.
        storage: `bfloat16`, `float32` or `float16`.
    """

    kind: str = field(default_factory=lambda: "states")
    encoder: EncoderDocument
    cut: int
    storage: str
    rows: RowsPart

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())


@dataclass(frozen=True, kw_only=True)
class RequestedEncoder(JsonDocument):
    """The encoder's part of a request: the settings as asked, which need no model to be loaded.

    Attributes:
        files: SHA-256 by name of the model's files.
        dtype: of the forward pass, as asked; may be `auto`.
        endpoint: address, model, revision and dimensions of an endpoint; None for a model with files.
    """

    files: dict[str, str]
    prompt: str
    lower_case: bool = False
    pool_prompt: bool = True
    max_length: int
    dtype: str
    storage: str
    extend_positions: str = "none"
    long_text: str = "truncate"
    overlap: int | None = None
    endpoint: dict[str, Any] | None = None
    format: int = 1

    @classmethod
    def of(cls, files: Mapping[str, str], dtype: str, features: FeatureSettings) -> RequestedEncoder:
        """Of settings in which nothing is `auto`, see `sentence_transformers.follow`."""
        return cls(
            files=dict(files),
            prompt=features.prompt,
            lower_case=bool(features.lower_case),
            pool_prompt=features.pool_prompt is not False,
            max_length=features.longest,
            dtype=dtype,
            storage=features.storage,
            extend_positions=features.extend_positions,
            long_text=features.long_text,
            overlap=features.overlap if features.long_text == "chunks" else None,
            format=FEATURE_FORMAT,
        )


@dataclass(frozen=True)
class Request(JsonDocument):
    """What was asked for a split, in content hashes and settings: the key of a repeated call.

    Attributes:
        source: see `data.split.describe_source`.
        views: in a record, every way the file's views may be asked for, to their canonical names.
    """

    split: str
    source: dict[str, Any]
    encoder: RequestedEncoder
    views: dict[str, str] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """The JSON object of the request without its views: what a repeated request must be equal to."""
        return {name: value for name, value in self.to_json().items() if name != "views"}


def task_of(labels: np.ndarray) -> str:
    """What labels ask of a head: `regression` of floats, `multi-label` of `[N, C]`, else `single-label`."""
    if labels.dtype.kind == "f":
        return REGRESSION
    return SINGLE_LABEL if labels.ndim == 1 else MULTI_LABEL


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
