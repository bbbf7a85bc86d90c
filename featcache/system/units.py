"""Sizes, ages, durations, shares and counts: read as people type them, written as people read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from featcache.errors import UsageError
from featcache.translation.language import gettext as _
from featcache.translation.language import noted

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

_BYTES: dict[str, float] = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SECONDS = {"s": 1.0, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


def parse_size(text: str, flag: str = "") -> int:
    """`10GB` as 10,000,000,000 bytes; also kB, MB and TB (powers of 1000), and KiB, MiB, ... (of 1024).

    Raises:
        UsageError: `text` is not a size; the message names `flag`.
    """
    return int(_number_with_unit(text, flag, _BYTES, "a size", "500MB, 10GB, 1.5TB, 8GiB"))


def parse_age(text: str, flag: str = "") -> float:
    """`30d` as seconds; the units are s, m (minutes), h, d and w.

    Raises:
        UsageError: `text` is not an age; the message names `flag`.
    """
    return float(_number_with_unit(text, flag, _SECONDS, "an age", "90m, 12h, 30d, 8w"))


def parse_count(text: str, flag: str = "") -> int:
    """`2_000_000`, `2,000,000`, `1e9` or `100M` as a whole number; the units are k, M, G or B, and T.

    Raises:
        UsageError: `text` is not a whole number above 0; the message names `flag`.
    """
    bare = text.strip().lower()
    unit = bare[-1:] if bare[-1:] in _COUNTS else ""
    try:
        number = Decimal(bare.removesuffix(unit).replace("_", "").replace(",", "")) * _COUNTS[unit]
        whole = int(number) if number.is_finite() and 0 < number < 10**18 else 0
    except InvalidOperation:
        number, whole = Decimal(0), 0
    if whole < 1 or whole != number:
        hint = "write it as in 2_000_000, 100M or 1e9"
        raise UsageError(f"{flag} {text!r} is not a whole number above 0".lstrip(), hint=hint)
    return whole


def size_text(size: float) -> str:
    """Bytes in decimal units: 1536 as `1.5 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def seconds_text(seconds: float | None) -> str:
    """A duration: `0.12 s`, `1 min 15 s`, `3 h 20 min`, `2.5 days`; `-` where it is not known."""
    if seconds is None:
        return "-"
    if seconds < MINUTE:
        return _("{seconds} s", seconds=f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}")
    if seconds >= 2 * DAY:
        return _("{days:,.1f} days", days=seconds / DAY)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return _("{hours} h {minutes} min", hours=hours, minutes=minutes)
    return _("{minutes} min {seconds} s", minutes=minutes, seconds=rest)


def age_text(seconds: float) -> str:
    """An age in its largest whole unit: 90 as `1 min`, 10,000 as `2 h`, 200,000 as `2 d`."""
    for size, text in ((DAY, noted("{count} d")), (HOUR, noted("{count} h")), (MINUTE, noted("{count} min"))):
        if seconds >= size:
            return _(text, count=int(seconds // size))
    return _("{count} s", count=int(seconds))


def percent_text(share: float | None, unit: str = "") -> str:
    """0.8975 as `89.75`, followed by `unit`; `-` for None and NaN."""
    return "-" if share is None or share != share else f"{100 * share:.2f}{unit}"


def share_text(part: float, whole: float) -> str:
    """`part` of `whole` as `12.5 %`; `-` where the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def interval_text(low: float | None, high: float | None) -> str:
    """Two shares as `[85.00, 89.00]`; empty where one is None."""
    return "" if low is None or high is None else f"[{percent_text(low)}, {percent_text(high)}]"


def cost_text(cost: float) -> str:
    """An amount with as many digits as it needs: `12.30`, `0.0042`."""
    return f"{cost:,.2f}" if cost >= 1 or cost == 0 else f"{cost:.2g}"


def count_text(count: float) -> str:
    """At most six digits: `118.2`, `26,500`, `97.4 billion`."""
    for size, text in (
        (1e12, noted("{count:,.1f} trillion")),
        (1e9, noted("{count:,.1f} billion")),
        (1e6, noted("{count:,.1f} million")),
    ):
        if count >= size:
            return _(text, count=count / size)
    return f"{count:,.0f}" if count >= 1000 else f"{count:,.1f}"


def short_count_text(count: float) -> str:
    """At most six characters, for progress bars: 16,023 as `16,023`, 3,392,400 as `3,392k`."""
    if round(count) < 1e5:
        return f"{count:,.0f}"
    return f"{count / 1e3:,.0f}k" if count < 9_999_500 else f"{count / 1e6:,.0f}M"


def _number_with_unit(text: str, flag: str, units: Mapping[str, float], what: str, examples: str) -> Decimal:
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-zA-Z]*)\s*", text, re.ASCII)
    if found is None or found[2].lower() not in units:
        hint = f"write a number and a unit: {examples}"
        raise UsageError(f"{flag} {text!r} is not {what}".lstrip(), hint=hint)
    return Decimal(found[1]) * Decimal(units[found[2].lower()])
