"""JSON documents as dataclasses: read with a check of every field, written without fields that are None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from featcache.errors import FeatcacheError

T = TypeVar("T")


def parse_document(kind: type[T], content: Any, where: str, error: Callable[[str], FeatcacheError]) -> T:
    """`content`, as `json.loads` returns it, as an instance of the dataclass `kind`.

    Unknown fields are ignored, so that documents of later versions can be read.

    Args:
        where: what the document is, for the message; for example its path.
        error: makes the error to be raised, for example `CacheError`.

    Raises:
        FeatcacheError: as `error` makes it, with the field that is missing or of another type.
    """
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise error(f"{where}: {problem}") from None


def plain_document(document: Any) -> dict[str, Any]:
    """A dataclass as a JSON object; fields that are None are left out, at every depth."""
    plain: dict[str, Any] = _plain(msgspec.to_builtins(document))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
