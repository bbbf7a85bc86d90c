"""The `.json` record beside a cache file: how it came to be, and the requests that it answered.

It may be lost: features are found by their rows without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.system.durable import write_file
from featcache.fingerprint import canonical
from featcache.fingerprint import fingerprint as document_hash


def record_path(path: Path) -> Path:
    """Of the cache file `path`."""
    return path.with_suffix(".json")


def parse_record(content: bytes, fingerprint: str) -> dict[str, Any]:
    """A record's content without its checksum; empty where it is damaged or of another file."""
    try:
        record = json.loads(content)
        intact = record.pop("checksum") == document_hash(record)
        return dict(record) if intact and record["fingerprint"] == fingerprint else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def read_record(path: Path, fingerprint: str) -> dict[str, Any]:
    """The record of the cache file `path`; empty where it is lost, damaged or of another file."""
    try:
        return parse_record(record_path(path).read_bytes(), fingerprint)
    except OSError:
        return {}


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """`record` as it lies on disk, with its checksum."""
    signed = {**record, "checksum": document_hash(record)}
    return json.dumps(signed, indent=1, sort_keys=True).encode("ascii")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Make `record` that of the cache file `path`.

    Raises:
        CacheError: the file system refuses.
    """
    write_file(record_path(path), record_bytes(record))


def with_request(record: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """`record`, in which it stands that `request` was answered too."""
    known = [canonical(one) for one in record["requests"]]
    new = [] if canonical(request) in known else [dict(request)]
    return {**record, "requests": [*record["requests"], *new]}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What two records of one file know together; of how it was made, what `first` says counts."""
    record = {**second, **first, "requests": list(first.get("requests", []))}
    for request in second.get("requests", []):
        record = with_request(record, request)
    return record
