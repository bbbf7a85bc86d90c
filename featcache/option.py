"""One setting as flags and the settings file see it: the type and the limits of its value."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import ge, gt, le, lt
from typing import Any

from featcache.errors import UsageError, closest


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """A dataclass field that carries its own help, choices and limits (`above`, `below`: exclusive)."""
    limits = {"least": least, "above": above, "below": below, "most": most}
    return field(default=default, metadata={"help": help, "choices": choices, **limits})


def setting_like(kind: type, name: str) -> Any:
    """A dataclass field that means the same as the setting `name` of the dataclass `kind`."""
    (same,) = (item for item in dataclasses.fields(kind) if item.name == name)
    return field(default=same.default, metadata=same.metadata)


@dataclass(frozen=True)
class Option:
    """One setting, as flags and the settings file see it.

    Attributes:
        section: the table of the file; empty for settings above all tables.
        type: `str`, `int`, `float`, `bool`, `tuple` or `dict`.
        optional: whether None is a value.
        least, above, below, most: limits of a number; `above` and `below` are exclusive.
    """

    section: str
    name: str
    type: Any
    optional: bool
    default: Any
    help: str
    choices: tuple[str, ...]
    least: float | None
    above: float | None
    below: float | None
    most: float | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


PATHS = ("model", "adapter", "backbones", "dataset", "data_files", "cache_dir", "reports_dir", "costs")

WRITTEN = {int: "write it as in 100", float: "write it as in 0.001 or 1e-3"}  # hints


def sections_of(kind: type) -> dict[str, Any]:
    """The dataclasses of the settings `kind` by table; `kind` itself under the empty name."""
    items = dataclasses.fields(kind)
    named = {item.name: type(item.default) for item in items if dataclasses.is_dataclass(item.default)}
    return {"": kind, **named}


@functools.cache  # to evaluate all type hints takes milliseconds, and a parser asks once for each section
def options_of(kind: type) -> Mapping[str, Option]:
    """Every setting of the dataclass `kind` by its name, in the order of the file; not to be changed."""
    found: dict[str, Option] = {}
    for section, cls in sections_of(kind).items():
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if "help" in item.metadata:
                hint, optional = hints[item.name], isinstance(hints[item.name], types.UnionType)
                bare = typing.get_args(hint)[0] if optional else hint  # `str` of `str | None`
                bare = typing.get_origin(bare) or bare  # `tuple` of `tuple[str, ...]`
                found[item.name] = Option(
                    section, item.name, type=bare, optional=optional, default=item.default, **item.metadata
                )
    return found


def coerce(option: Option, value: Any) -> Any:
    """`value` in the type of `option`.

    Raises:
        UsageError: names the flag, what it accepts, and what was given.
    """
    try:
        typed = _typed(option, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{option.flag}: {error}", hint=WRITTEN.get(option.type)) from None
    if option.choices and typed is not None and typed not in option.choices:
        close = closest(str(typed), list(option.choices))
        what = f"{option.flag}: {typed!r} is none of {', '.join(option.choices)}"
        raise UsageError(what, hint=f"did you mean {close}?" if close else None)
    if option.name in PATHS and "\0" in "".join(typed.values() if isinstance(typed, dict) else typed or ""):
        raise UsageError(f"{option.flag}: {value!r} is no path: it has a NUL character")
    if isinstance(typed, (int, float)) and not isinstance(typed, bool):
        _check_limits(option, typed)
    return typed


def weights_by_name(text: str) -> dict[str, float] | None:
    """The weights in `good=1,bad=3`, or in a JSON object of them; None for `none` and `balanced`.

    Raises:
        ValueError: another text, a name twice, or a weight that is not above 0.
    """
    if text in ("none", "balanced"):
        return None
    try:
        if text.startswith("{"):  # names with commas
            pairs = list(json.loads(text, object_pairs_hook=list))
        else:
            pairs = [part.rpartition("=")[::2] for part in text.split(",")]
        found = {str(name).strip(): float(weight) for name, weight in pairs}
    except (TypeError, ValueError):
        raise ValueError(f"{text!r}: none, balanced, or weights by name such as good=1,bad=3") from None
    if len(found) < len(pairs) or "" in found:
        raise ValueError(f"{text!r} has a name twice, or none")
    for name, weight in found.items():
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight of {name!r} is {weight:g}: a finite number above 0 is needed")
    return found


def _check_limits(option: Option, number: float) -> None:
    """NaN and infinity are outside any limits."""
    limits = [
        ("at least", option.least, ge), ("above", option.above, gt),
        ("below", option.below, lt), ("at most", option.most, le),
    ]  # fmt: skip
    known = [(text, limit, holds) for text, limit, holds in limits if limit is not None]
    if isinstance(number, int) and abs(number) >= 1 << 63:
        raise UsageError(f"{option.flag} {number}: beyond 64 bits")
    if not math.isfinite(number) or not all(holds(number, limit) for _, limit, holds in known):
        wanted = " and ".join(f"{text} {limit}" for text, limit, _ in known) or "a finite number"
        raise UsageError(f"{option.flag} {number}: must be {wanted}")


def _typed(option: Option, value: Any) -> Any:
    if value is None and option.optional:
        return None
    if option.name == "class_weight" and isinstance(value, str):
        weights_by_name(value)
    if option.type is tuple:
        return _items(value)
    if option.name == "prices":
        return _prices(value)
    if option.type is dict:
        return _mapping(value)
    if option.type in (int, float):
        return _number(option.type, value)
    if not isinstance(value, option.type):
        wanted = "true or false" if option.type is bool else "text"
        raise ValueError(f"wants {wanted}, got {value!r}")
    return value


def _items(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise ValueError(f"wants a list, got {value!r}")
    items = tuple(str(part).strip() for part in parts)
    if not items or not all(items):
        raise ValueError(f"has an empty item: {value!r}")
    return items


def _number(kind: type, value: Any) -> int | float:
    if isinstance(value, bool):
        raise ValueError(f"wants a number, got {value!r}")
    try:
        number: int | float = kind(value)
    except (TypeError, ValueError, OverflowError):
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"wants {wanted}, got {value!r}") from None
    if kind is int and isinstance(value, float) and number != value:
        raise ValueError(f"wants a whole number, got {value!r}")
    return number


def _prices(value: Any) -> dict[str, float] | None:
    """Prices by name, of `A=0.02,B=0.1` or of a table; None where there are none."""
    try:
        pairs = (
            (part.rpartition("=")[::2] for part in value.split(","))
            if isinstance(value, str)
            else value.items()
        )
        found = {str(name).strip(): float(price) for name, price in pairs}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{value!r}: write prices by name, e.g. text-embedding-3-small=0.02") from None
    for name, price in found.items():
        if not 0 <= price < math.inf or not name:
            raise ValueError(f"the price of {name!r} is {price:g}: a number of at least 0 is needed")
    return found or None


def _mapping(value: Any) -> dict[str, str] | None:
    """None where it is empty."""
    if isinstance(value, str) and value:
        pairs = [part.partition("=")[::2] for part in value.split(",")]
        found = {key.strip(): file.strip() for key, file in pairs}
        if not all(found) or not all(found.values()):
            raise ValueError(f"wants train=FILE,test=FILE, got {value!r}")
        return found
    if not isinstance(value, Mapping):
        raise TypeError(f"wants a table of split = file, got {value!r}")
    return {str(key): str(file) for key, file in value.items()} or None
