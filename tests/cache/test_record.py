"""Records: read as they were written, by this version and the one before; damaged ones are empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featcache.cache.record import (
    CacheRecord,
    Provenance,
    parse_record,
    read_record,
    record_path,
    write_record,
)
from featcache.fingerprint import fingerprint
from tests.support.documents import make_request

NAME = "ab" * 32


def signed(content: dict[str, Any]) -> bytes:
    """A record's bytes with the checksum of `content`."""
    return json.dumps({**content, "checksum": fingerprint(content)}).encode()


# As the version before wrote it: `commit` is null for a model of a folder, and there are no later fields.
BEFORE = {
    "fingerprint": NAME,
    "requests": [
        {
            "split": "train",
            "source": {"text_column": "text", "label_names": None, "files": {"train": {"sha256": "0"}}},
            "encoder": {
                "files": {"config.json": "0"}, "prompt": "", "max_length": 512, "dtype": "auto",
                "storage": "float16",
            },
            "views": {"12/cls": "last/cls"},
        }
    ],
    "made": {
        "seconds": 2.5, "pairs": False, "encoded": 3, "tokens": 9, "created": "2025-01-01T00:00:00+0000",
        "dataset": "d", "model": "m", "commit": None, "device": "cpu", "dtype": "float32",
        "packing": "packed", "packing_note": "", "fused": [], "host": "h", "versions": {"torch": "2.10"},
    },
}  # fmt: skip


def test_parse_record_keeps_every_key_of_the_version_before() -> None:
    record = parse_record(signed(BEFORE), NAME)
    assert record is not None and record.to_json() == BEFORE
    assert json.loads(record.to_bytes()) == json.loads(signed(BEFORE))
    assert record.made.commit is None and record.made.fused == ()
    assert record.requests[0].views == {"12/cls": "last/cls"}


def test_parse_record_keeps_fields_of_a_later_version() -> None:
    later = {**BEFORE, "owner": "me", "made": {**BEFORE["made"], "watts": 9}}
    later["requests"] = [{**BEFORE["requests"][0], "encodings": ["utf-8"]}]
    record = parse_record(signed(later), NAME)
    assert record is not None and record.to_json() == later
    known = parse_record(signed(BEFORE), NAME)
    assert known is not None and known.requests[0].key() != record.requests[0].key()


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "0" * 64},
        {"requests": None},
        {"requests": {}},
        {"requests": [1]},
        {"requests": [{"split": "train"}]},
        {"made": []},
        {"made": {"seconds": "long"}},
    ],
    ids=str,
)
def test_parse_record_refuses_other_content(changes: dict[str, Any]) -> None:
    assert parse_record(signed({**BEFORE, **changes}), NAME) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000])
def test_read_record_is_empty_for_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    record_path(path).write_bytes(content)
    assert read_record(path, NAME) == CacheRecord(NAME)


def test_read_record_is_empty_for_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    assert read_record(path, NAME) == CacheRecord(NAME)
    write_record(path, CacheRecord(NAME, (make_request(),)))
    assert read_record(path, NAME).requests == (make_request(),)
    assert read_record(path, "0" * 64) == CacheRecord("0" * 64)


def test_with_request_keeps_each_request_once() -> None:
    record = CacheRecord(NAME).with_request(make_request())
    assert record.with_request(make_request()) == record
    other = make_request(max_length=9)
    assert record.with_request(other).requests == (make_request(), other)


def test_merged_has_the_requests_of_both_and_the_own_provenance() -> None:
    one = CacheRecord(NAME, (make_request(),), Provenance(seconds=1.0))
    two = CacheRecord(NAME, (make_request(), make_request("test")), Provenance(seconds=2.0))
    merged = one.merged(two)
    assert merged.requests == (make_request(), make_request("test")) and merged.made.seconds == 1.0
    assert CacheRecord(NAME).merged(two) == two and two.merged(CacheRecord(NAME)) == two
