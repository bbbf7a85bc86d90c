"""JSON documents as dataclasses: read with a check of every field, and written as plain JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import msgspec

from featcache.fingerprint import JsonDocument
from featcache.system.text import readable

T = TypeVar("T")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json(content: bytes) -> Any:
    """The value of a JSON text from a file.

    Raises:
        ValueError: no JSON, nested too deeply, or with a number or a text that nothing can hold; names it.
    """
    try:
        value = json.loads(content)
        odd = next(_odd_values(value, "$"), None)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if odd is not None:
        raise ValueError(odd)
    return value


def _odd_values(value: Any, at: str) -> Iterator[str]:
    """A sentence for each integer that is beyond 64 bits and each text that is no valid Unicode."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _odd_values(key, f"{at}, a key")
            yield from _odd_values(one, f"{at}.{key}")
    elif isinstance(value, list):
        for one in value:
            yield from _odd_values(one, f"{at}[...]")
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield f"a number beyond 64 bits - at `{at}`"
    elif isinstance(value, str) and _SURROGATE.search(value):
        yield f"a text that is no valid Unicode - at `{readable(at)}`"


def parse_document(kind: type[T], content: Any, where: str, error: Callable[[str], Exception]) -> T:
    """`content`, as `json.loads` returns it, as an instance of the dataclass `kind`.

    Unknown fields are ignored, so that documents of later versions can be read.

    Args:
        where: what the document is, for the message; for example its path.
        error: makes the error to be raised, for example `CacheError`.

    Raises:
        Exception: as `error` makes it, with the field that is missing or of another type.
    """
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise error(f"{where}: {problem}") from None


def read_document(kind: type[T], content: bytes, where: str, error: Callable[[str], Exception]) -> T:
    """A JSON text from a file as an instance of `kind`; see `read_json` and `parse_document`."""
    try:
        value = read_json(content)
    except ValueError as problem:
        raise error(f"{where}: {problem}") from None
    return parse_document(kind, value, where, error)


def plain_document(document: Any) -> dict[str, Any]:
    """A dataclass as a JSON object; its fields that are None are left out."""
    return {name: value for name, value in json_document(document).items() if value is not None}


def json_document(document: Any) -> Any:
    """`document` for `json.dumps`: dataclasses become objects at every depth, and None becomes null.

    The key of a field is its name without a `_` at its end: `in_` becomes `in`.
    """
    if isinstance(document, JsonDocument):
        return document.to_json()
    if is_dataclass(document):
        named = ((field.name.removesuffix("_"), getattr(document, field.name)) for field in fields(document))
        return {name: json_document(value) for name, value in named}
    if isinstance(document, Mapping):
        return {key: json_document(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [json_document(value) for value in document]
    return document


def tidied(document: T, *, digits: int | None = None, text: Callable[[str], str] = str) -> T:
    """`document` with values that JSON can hold, at every depth of dataclasses, mappings and lists.

    NaN and infinite numbers become None, numpy's numbers Python's.

    Args:
        digits: significant digits that are kept of a float; None keeps all.
        text: what becomes of each text.
    """

    def tidy(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: tidy(getattr(value, field.name)) for field in fields(value)})
        if isinstance(value, Mapping):
            return {text(str(key)): tidy(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(tidy(one) for one in value)
        if isinstance(value, str):
            return text(value)
        if hasattr(value, "item"):  # a number of numpy's
            value = value.item()
        if not isinstance(value, float):
            return value
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")

    return cast(T, tidy(document))
