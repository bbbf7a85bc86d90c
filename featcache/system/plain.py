"""Documents as plain JSON, and texts as a page can show them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

# Control characters but tab and line break, changes of direction, surrogates, non-characters.
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def plain(value: Any) -> Any:
    """Plain JSON, of numpy's numbers too; NaN is None, and texts are `readable`."""
    if isinstance(value, Mapping):
        return {readable(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def readable(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, control characters and those that turn the line around."""
    return _UNREADABLE.sub("\ufffd", text)
