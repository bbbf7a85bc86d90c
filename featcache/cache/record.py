"""The `.json` record beside a cache file: how the file was made, and the requests that it answered.

A record may be lost: without it, features are found by the hashes of their rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featcache.fingerprint import JsonDocument, Request, canonical
from featcache.fingerprint import fingerprint as document_hash
from featcache.plain_file import read_plain
from featcache.system.documents import read_json
from featcache.system.durable import write_file


@dataclass(frozen=True, kw_only=True)
class Provenance(JsonDocument):
    """How the features of a file were made; None for what the record does not say.

    Attributes:
        seconds: that making the file took.
        pairs: whether the rows are pairs of texts.
        encoded: texts that went through the backbone.
        tokens: of these texts.
        unknown_tokens: share of the tokens of all rows that the vocabulary does not have.
        created: local time, ISO 8601.
        model, commit: the backbone as it was named; the commit of a hub model.
        hub: where the model comes from, if that is not Hugging Face.
        dtype: of the forward pass.
        packing, packing_note: `packed`; or `padded`, `equal lengths` or `one by one` with the reason.
        fused: modules that were replaced by faster ones.
        versions: of packages, by name.
        vectors: the file that imported vectors were read from.
        texts: the settings of the data that their rows are, by name.
    """

    seconds: float | None = None
    pairs: bool | None = None
    encoded: int | None = None
    tokens: int | None = None
    unknown_tokens: float | None = None
    created: str | None = None
    dataset: str | None = None
    model: str | None = None
    commit: str | None = None
    hub: str | None = None
    device: str | None = None
    dtype: str | None = None
    packing: str | None = None
    packing_note: str | None = None
    fused: tuple[str, ...] | None = None
    host: str | None = None
    versions: dict[str, str] | None = None
    vectors: str | None = None
    texts: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Fields that are None are left out; a `commit` that is null stays beside its `model`."""
        return ({} if self.model is None else {"commit": self.commit}) | super().to_json()


@dataclass(frozen=True)
class CacheRecord(JsonDocument):
    """What is known of a cache file besides its content.

    Attributes:
        requests: that the file answered, each one once.
        made: None where it is not known.
    """

    fingerprint: str
    requests: tuple[Request, ...] = field(default_factory=tuple)
    made: Provenance = Provenance()

    def to_bytes(self) -> bytes:
        """The file's content, with its checksum."""
        content = self.to_json()
        content["checksum"] = document_hash(content)
        return json.dumps(content, indent=1, sort_keys=True).encode("ascii")

    def with_request(self, request: Request) -> CacheRecord:
        """This record with `request` among those that were answered."""
        known = {canonical(one.to_json()) for one in self.requests}
        if canonical(request.to_json()) in known:
            return self
        return replace(self, requests=(*self.requests, request))

    def merged(self, other: CacheRecord) -> CacheRecord:
        """This record with what only `other`, a record of the same file, knows."""
        made = other.made if self.made == Provenance() else self.made
        record = replace(self, made=made, unknown={**other.unknown, **self.unknown})
        for request in other.requests:
            record = record.with_request(request)
        return record


def record_path(path: Path) -> Path:
    """The record of the cache file `path`."""
    return path.with_suffix(".json")


def parse_record(content: bytes, fingerprint: str) -> CacheRecord | None:
    """The record in a file's content; None where it is damaged or belongs to another cache file."""
    try:
        record = read_json(content)
        if record.pop("checksum") != document_hash(record) or record["fingerprint"] != fingerprint:
            return None
        return CacheRecord.from_json(record) if "requests" in record else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_record(path: Path, fingerprint: str) -> CacheRecord:
    """The record of the cache file `path`; an empty one where it is lost, damaged or of another file."""
    try:
        found = parse_record(read_plain(record_path(path)), fingerprint)
    except OSError:
        found = None
    return found or CacheRecord(fingerprint)


def write_record(path: Path, record: CacheRecord) -> None:
    """Make `record` the record of the cache file `path`.

    Raises:
        CacheError: the file system refuses.
    """
    write_file(record_path(path), record.to_bytes())
