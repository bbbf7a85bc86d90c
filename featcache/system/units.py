"""Sizes and ages as people type them: `10GB`, `30d`."""

from __future__ import annotations

import math
import re

from featcache.errors import UsageError

DAY = 86400.0

_BYTES = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}


def parse_size(text: str) -> int:
    """`10GB` -> 10,000,000,000; also kB, MB, TB, in powers of 1000, and KiB ... of 1024.

    Raises:
        UsageError: no such size.
    """
    number, unit = _number_and_unit(text)
    if number is None or unit not in _BYTES:
        raise UsageError(f"{text!r} is no size", hint="a number and a unit: 500MB, 10GB, 1.5TB, 8GiB")
    return int(number * _BYTES[unit])


def parse_age(text: str) -> float:
    """`30d` -> seconds; s, m (minutes), h, d or w.

    Raises:
        UsageError: no such age.
    """
    number, unit = _number_and_unit(text)
    if number is None or unit not in _SECONDS:
        raise UsageError(f"{text!r} is no age", hint="a number and a unit: 90m, 12h, 30d, 8w")
    return number * _SECONDS[unit]


def _number_and_unit(text: str) -> tuple[float | None, str]:
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-zA-Z]*)\s*", text, re.ASCII)
    if found is None or not math.isfinite(float(found[1])):
        return None, ""
    return float(found[1]), found[2].lower()
