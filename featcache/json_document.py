"""JSON objects as dataclasses that keep the fields of later versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, get_args, get_type_hints

import msgspec


@dataclass(frozen=True)
class JsonDocument:
    """A JSON object as a dataclass that keeps the fields of later versions.

    Attributes:
        unknown: fields that a later version added; they count in fingerprints and comparisons.
    """

    unknown: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """The JSON object. A field with a plain default is left out where it has this value: documents made
        before the field existed keep their fingerprints. One with a `default_factory` is always there."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "unknown"}
        defaults = {each.name: each.default for each in fields(self)}
        known = {name: _plain(value) for name, value in values.items() if value != defaults[name]}
        return known | self.unknown

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """The document that `to_json` wrote.

        Raises:
            ValueError: a field is missing or has another type.
        """
        try:
            return msgspec.convert(_known_apart(cls, content), cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, JsonDocument):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _known_apart(kind: Any, content: Any) -> Any:
    """`content` with what is no field of the document `kind` under `unknown`, at every depth."""
    documents = (one for one in (kind, *get_args(kind)) if isinstance(one, type))
    document = next((one for one in documents if issubclass(one, JsonDocument)), None)
    if document is None:
        return content
    if isinstance(content, list):
        return [_known_apart(document, one) for one in content]
    if not isinstance(content, Mapping):
        return content
    kinds = get_type_hints(document)
    del kinds["unknown"]
    known = {name: _known_apart(kinds[name], value) for name, value in content.items() if name in kinds}
    return known | {"unknown": {name: value for name, value in content.items() if name not in kinds}}
