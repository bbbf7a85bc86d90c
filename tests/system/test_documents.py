"""Documents as dataclasses and as plain JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from featcache.errors import CacheError
from featcache.system.documents import (
    json_document,
    parse_document,
    plain_document,
    read_document,
    read_json,
    tidied,
)


@dataclass(frozen=True)
class Document:
    name: str
    count: int = 3
    note: str | None = None


def test_plain_document_has_defaults_that_were_not_in_the_parsed_json() -> None:
    parsed = parse_document(Document, {"name": "a", "later": 1}, "x.json", CacheError)
    assert parsed == Document("a") and plain_document(parsed) == {"name": "a", "count": 3}


def test_plain_document_keeps_null_within_a_mapping() -> None:
    assert plain_document(Keyword({"cut": None})) == {"in": {"cut": None}}


def test_parse_document_names_the_field_of_another_type() -> None:
    with pytest.raises(CacheError, match=r"x\.json: .*`\$\.count`"):
        parse_document(Document, {"name": "a", "count": "many"}, "x.json", CacheError)


@dataclass(frozen=True)
class Keyword:
    """A document with a key that is a Python keyword."""

    in_: Any
    values: Any = None


def test_json_document_drops_the_underscore_and_keeps_null() -> None:
    document = Keyword("a", (1, Keyword({"x": None})))
    assert json_document(document) == {
        "in": "a", "values": [1, {"in": {"x": None}, "values": None}],
    }  # fmt: skip


def test_tidied_makes_every_value_fit_for_json() -> None:
    values = {"a": np.float32(0.5), "b": [float("nan"), np.inf], "c": (np.int64(3), np.bool_(True))}
    found = tidied(Keyword("x\x00", values), text=lambda text: text.replace("\x00", "?"))
    assert found == Keyword("x?", {"a": 0.5, "b": [None, None], "c": (3, True)})
    json.dumps(json_document(found), allow_nan=False)


def test_tidied_rounds_to_digits() -> None:
    assert tidied([0.123456789, 1234567.0, 7], digits=6) == [0.123457, 1234570.0, 7]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "Expecting"), (b"\xff", "utf-8"), (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "digits"),
        (b'{"a": [1, {"b": 9223372036854775808}]}', r"beyond 64 bits - at `\$\.a\[\.\.\.\]\.b`"),
        (b'{"a": "\\ud800"}', r"no valid Unicode - at `\$\.a`"), (b'{"\\ud800": 1}', "a key"),
    ],
    ids=lambda value: repr(value[:12]),
)  # fmt: skip
def test_read_json_names_what_nothing_can_hold(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_json(content)
    with pytest.raises(CacheError, match=r"x\.json: "):
        read_document(Document, content, "x.json", CacheError)


def test_read_document_returns_the_dataclass() -> None:
    content = b'{"name": "a", "count": 7, "later": NaN}'
    assert read_document(Document, content, "x.json", CacheError) == Document("a", 7)
