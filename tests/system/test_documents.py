"""Documents keep their defaults through parsing and writing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from featcache.errors import CacheError
from featcache.system.documents import parse_document, plain_document


@dataclass(frozen=True)
class Document:
    name: str
    count: int = 3
    note: str | None = None


def test_plain_document_has_defaults_that_were_not_in_the_parsed_json() -> None:
    parsed = parse_document(Document, {"name": "a", "later": 1}, "x.json", CacheError)
    assert parsed == Document("a") and plain_document(parsed) == {"name": "a", "count": 3}


def test_parse_document_names_the_field_of_another_type() -> None:
    with pytest.raises(CacheError, match=r"x\.json: .*`\$\.count`"):
        parse_document(Document, {"name": "a", "count": "many"}, "x.json", CacheError)
