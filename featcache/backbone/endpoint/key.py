"""The key of an endpoint: from the environment, and never written anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from featcache.errors import UsageError

NAMES = ("FEATCACHE_API_KEY", "OPENAI_API_KEY")  # the first that is set counts


@dataclass(frozen=True, repr=False)
class ApiKey:
    """A key that does not show itself; `str`, `repr` and tracebacks have the name of its variable alone."""

    name: str = ""
    _value: str = field(default="", compare=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ApiKey:
        """The key of this user; an empty one where there is none.

        Raises:
            UsageError: it has characters that no header can have.
        """
        for name in NAMES:
            if value := environment.get(name, "").strip():
                if not value.isascii() or not value.isprintable() or " " in value:
                    raise UsageError(
                        f"{name} has characters that a key cannot have",
                        hint="copy the key again, without blanks",
                    )
                return cls(name, value)
        return cls()

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"<key of {self.name}>" if self else "<no key>"

    def headers(self) -> dict[str, str]:
        """The header that carries the key."""
        return {"Authorization": f"Bearer {self._value}"} if self else {}

    def removed_from(self, text: str) -> str:
        """`text` without the key: servers repeat it in their errors."""
        return text.replace(self._value, "[key]") if self else text
